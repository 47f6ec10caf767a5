"""
What is installed: packages with their .piopm, platforms with their manifest and boards.

Read as data. A platform's code (`platform.py`) is never loaded here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_agent.platformio_home.layout import Layout
from aegis_agent.platformio_home.package_spec import InstalledPackage

OUR_PLATFORM: Final = "aegis-esp"
_JSON_LIMIT_BYTES: Final = 4 << 20
_BUILD_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_COMPILERS: Final = {
    "riscv": ("riscv64-unknown-elf-gcc", "gcc-riscv64-unknown-elf"),
    "xtensa": ("xtensa-lx106-elf-gcc", "gcc-xtensa-lx106"),
}


@dataclass(frozen=True)
class Board:
    """A board's manifest, as far as it matters here. chip: `build.mcu`, such as esp32p4."""

    board_id: str
    chip: str
    arch: str
    platforms: tuple[str, ...]


@dataclass(frozen=True)
class Platform:
    """An installed platform, or one in a project's folder (package is None then)."""

    name: str
    version: str
    path: Path
    manifest: dict[str, Any]
    package: InstalledPackage | None

    def board(self, board_id: str) -> Board | None:
        return read_board(self.path / "boards", board_id)

    def boards(self) -> Iterator[Board]:
        for path in sorted((self.path / "boards").glob("*.json")):
            board = read_board(path.parent, path.stem)
            if board is not None:
                yield board


def installed_packages(folder: Path) -> list[InstalledPackage]:
    """Return the packages in `folder` (packages/, platforms/ or libdeps/ENV); absent is empty."""
    return [package for _, package in _packages(folder)]


def installed_platforms(core: Path) -> list[Platform]:
    """Return the platforms of a core directory."""
    found = []
    for path, package in _packages(core / "platforms"):
        manifest = read_json(path / "platform.json")
        if manifest is not None:
            found.append(Platform(package.name, package.version, path, manifest, package))
    return found


def local_platform(folder: Path) -> Platform | None:
    """Return the platform in `folder`, such as one that a project brings along."""
    manifest = read_json(folder / "platform.json")
    if manifest is None or not isinstance(manifest.get("name"), str):
        return None
    return Platform(manifest["name"], str(manifest.get("version", "0.0.0")), folder, manifest, None)


def read_board(folder: Path, board_id: str) -> Board | None:
    """Return board `board_id` out of `folder`, or None if there is none or it can't be read."""
    manifest = read_json(folder / f"{board_id}.json")
    if manifest is None:
        return None
    build = manifest.get("build")
    build = build if isinstance(build, dict) else {}
    platforms = manifest.get("platforms", manifest.get("platform", ()))
    return Board(
        board_id=board_id,
        chip=str(build.get("mcu", "")).lower(),
        arch=str(build.get("arch", "")),
        platforms=(platforms,) if isinstance(platforms, str) else tuple(map(str, platforms)),
    )


def missing_compiler(board: Board) -> tuple[str, str] | None:
    """
    Return the compiler that a board of our platform needs and its Debian package, if builds would
    not find it. Other platforms bring theirs as packages.
    """
    compiler = _COMPILERS.get(board.arch)
    if compiler is None or shutil.which(compiler[0], path=_BUILD_PATH) is not None:
        return None
    return compiler


def targets(home: Path) -> tuple[str, ...]:
    """Return the ESP chips that the platforms of `home` have boards for, with a compiler there."""
    chips = set()
    for platform in installed_platforms(Layout(home).core):
        for board in platform.boards():
            ours = platform.name == OUR_PLATFORM
            if board.chip.startswith("esp") and not (ours and missing_compiler(board)):
                chips.add(board.chip)
    return tuple(sorted(chips))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in `path`; None if there is none, or none of sane size."""
    try:
        if path.stat().st_size > _JSON_LIMIT_BYTES or not path.is_file():
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _packages(folder: Path) -> Iterator[tuple[Path, InstalledPackage]]:
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        path, link = entry, None
        if entry.name.endswith(".pio-link"):
            link = read_json(entry) or {}
            path = Path(str(link.get("spec", {}).get("uri", "")).removeprefix("symlink://"))
            if not path.is_absolute():
                path = Path(str(link.get("cwd", "/"))) / path
        metadata = read_json(path / ".piopm")
        if metadata is None and link is not None:
            manifest = read_json(path / "platform.json") or read_json(path / "package.json") or {}
            metadata = {**manifest, "spec": link.get("spec")}
        if metadata is None or not isinstance(metadata.get("name"), str):
            continue
        spec = metadata.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        yield (
            path,
            InstalledPackage(
                name=metadata["name"],
                version=str(metadata.get("version", "0.0.0")),
                owner=spec.get("owner"),
                uri=spec.get("uri"),
            ),
        )
