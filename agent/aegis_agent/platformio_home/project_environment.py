"""One environment of a project: its platform among the installed ones, its board, its chip."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_protocol.failures.toolchain import ProjectConfigInvalid

from aegis_agent.platformio_home.inventory import Board, Platform, local_platform, read_board
from aegis_agent.platformio_home.package_spec import PackageSpec, matches, parse_spec
from aegis_agent.platformio_home.project_ini import ProjectIni

_BOARD_ID: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")


@dataclass(frozen=True)
class ProjectEnvironment:
    """
    spec      its platform, as the project asks for it
    platform  the installed one that fits, or the project's own; None: it has to be installed
    board     None without `board`, or while the platform is missing
    chip      from the board, or `board_build.mcu`
    """

    name: str
    spec: PackageSpec
    platform: Platform | None
    board_id: str | None
    board: Board | None
    chip: str | None
    frameworks: tuple[str, ...]

    @property
    def undecided(self) -> bool:
        """Its platform is missing, and with it what its board is."""
        return self.platform is None and self.chip is None


def read_environment(ini: ProjectIni, name: str, installed: list[Platform]) -> ProjectEnvironment:
    """Return environment `name`; ProjectConfigInvalid when it can't be one."""
    section = f"env:{name}"
    platform_text = ini.text(section, "platform")
    if not platform_text:
        raise ProjectConfigInvalid(
            f"environment {name} names no platform", remedy="Add `platform = …` to it."
        )
    spec = read_spec(ini, platform_text, "platform")
    platform = _find_platform(ini, spec, installed)
    board_id = ini.text(section, "board") or None
    board = _find_board(ini, name, board_id, platform)
    chip = ini.text(section, "board_build.mcu") or (board.chip if board else None)
    return ProjectEnvironment(
        name=name,
        spec=spec,
        platform=platform,
        board_id=board_id,
        board=board,
        chip=chip.lower() if chip else None,
        frameworks=tuple(ini.list(section, "framework")),
    )


def read_spec(ini: ProjectIni, raw: str, option: str) -> PackageSpec:
    """Return what `raw` asks for; a folder must lie in the project or be absolute, the agent's."""
    spec = parse_spec(raw)
    if spec.folder is None and "/" in raw and (ini.project_dir / raw.strip()).exists():
        spec = parse_spec(f"file://{raw.strip()}")
    if spec.folder is not None and not Path(spec.folder).is_absolute():
        ini.inside(spec.folder, option)
    return spec


def _find_platform(
    ini: ProjectIni, spec: PackageSpec, installed: list[Platform]
) -> Platform | None:
    if spec.folder is None:
        fitting = [one for one in installed if one.package and matches(spec, one.package)]
        return fitting[-1] if fitting else None
    if not Path(spec.folder).is_absolute():
        return local_platform(ini.inside(spec.folder, "platform"))
    # Whoever wrote it meant a folder of the agent: only one that is installed there counts.
    wanted = Path(spec.folder).resolve()
    return next((one for one in installed if one.path.resolve() == wanted), None)


def _find_board(
    ini: ProjectIni, name: str, board_id: str | None, platform: Platform | None
) -> Board | None:
    if board_id is None:
        return None
    if not _BOARD_ID.match(board_id):
        raise ProjectConfigInvalid(f"environment {name}: {board_id!r} is no board id")
    own = ini.text("platformio", "boards_dir") or "boards"
    ini.inside(f"{own}/{board_id}.json", "boards_dir")
    board = read_board(ini.project_dir / own, board_id)
    if board is not None and _is_for(board, platform):
        return board
    if platform is None:
        return None
    board = platform.board(board_id)
    if board is not None and _is_for(board, platform):
        return board
    raise ProjectConfigInvalid(
        f"environment {name}: platform {platform.name} {platform.version} has no board {board_id}",
        remedy="`pio boards` lists the boards; a newer platform may have it.",
    )


def _is_for(board: Board, platform: Platform | None) -> bool:
    return platform is None or not board.platforms or platform.name in board.platforms
