"""
ESP-IDF: an installation of the machine's, driven by `idf.py build`.

One build folder per target below `build/`, with an sdkconfig in it unless the project brings its
own: changing the target of a shared one would throw the whole build away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from aegis_protocol.failures.toolchain import (
    EnvironmentUnknown,
    ProjectConfigInvalid,
    TargetUnsupported,
)
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.source import SourcePlan

from aegis_agent.platformio_home.build_core import SOURCE_DATE_EPOCH
from aegis_agent.sandbox import Mount
from aegis_agent.toolchains.idf_installations import IdfInstallation, find_installations
from aegis_agent.toolchains.interpreter import base_prefix
from aegis_agent.toolchains.kind import (
    PROJECT,
    BuildPlan,
    BuildWish,
    Described,
    DescribedImage,
    ReadFile,
)

_PROJECT_CMAKE: Final = re.compile(
    r"^[^#\n]*\binclude\s*\([^)]*project(?:v2)?\.cmake", re.MULTILINE
)
_SDKCONFIG_TARGET: Final = re.compile(r'^CONFIG_IDF_TARGET="(\w+)"$', re.MULTILINE)
# export.sh is the documented way to PATH and the Python environment of exactly this checkout.
_RUN: Final = '. "$IDF_PATH/export.sh" >/dev/null && exec idf.py "$@"'
_FLASHER_NAMES: Final = {"bootloader": "bootloader", "partition-table": "partitions", "app": "app"}


class EspIdf:
    """installation: a checkout with its tools."""

    kind: Final = "esp-idf"
    kept: Final = frozenset(
        {"build", "managed_components", "dependencies.lock", "sdkconfig", "sdkconfig.old"}
    )

    def __init__(self, installation: IdfInstallation) -> None:
        self._at = installation

    @classmethod
    def installations(cls, environ: Mapping[str, str], home: Path) -> list[Self]:
        """One for each that is found here, the newest first."""
        return [cls(found) for found in find_installations(environ, home)]

    def detect(self) -> Toolchain | None:
        if not (self._at.path / "tools" / "idf.py").is_file():
            return None
        return Toolchain(kind=self.kind, version=self._at.version, targets=self._at.targets)

    @staticmethod
    def is_project(plan: SourcePlan) -> bool:
        paths = {file.path for file in plan.files}
        return "CMakeLists.txt" in paths and "platformio.ini" not in paths

    def recognizes(self, plan: SourcePlan) -> bool:
        return self.is_project(plan)

    def plan(self, project: Path, wish: BuildWish) -> BuildPlan:
        _check_project(project, wish)
        if wish.target not in self._at.targets:
            raise TargetUnsupported(
                f"ESP-IDF {self._at.version} here has no {wish.target}; it has: "
                + ", ".join(self._at.targets),
                remedy=f"On the agent run: {self._at.path}/install.sh {wish.target}",
            )
        arguments = ["-B", f"build/{wish.target}", "-D", f"IDF_TARGET={wish.target}"]
        if not (project / "sdkconfig").exists():
            arguments += ["-D", f"SDKCONFIG={PROJECT}/build/{wish.target}/sdkconfig"]
        if wish.verbose:
            arguments.append("-v")
        return BuildPlan(
            kind=self.kind,
            version=self._at.version,
            platform=f"esp-idf {self._at.version}",
            environment=wish.target,
            command=("bash", "-c", _RUN, "idf.py", *arguments, "build"),
            env=self._env(),
            mounts=self._mounts(),
            shared={str(self._at.path): self._at.path},
        )

    def prepare(self, scratch: Path) -> tuple[Mount, ...]:
        return ()

    def described(self, plan: BuildPlan, read: ReadFile) -> Described:
        folder = PurePosixPath(PROJECT, "build", plan.environment)
        flasher = _object(read(str(folder / "flasher_args.json")), "flasher_args.json")
        about = _object(read(str(folder / "project_description.json")), "project_description.json")
        files = flasher.get("flash_files")
        if not isinstance(files, dict) or not files:
            raise ValueError("flasher_args.json names no files")
        names = _names(flasher)
        images = [
            DescribedImage(
                name=names.get(str(path), PurePosixPath(str(path)).stem),
                path=str(folder / str(path)),
                offset=int(offset, 0),
            )
            for offset, path in files.items()
        ]
        elf = about.get("app_elf")
        return Described(
            images=tuple(images),
            elf=str(folder / elf) if isinstance(elf, str) else None,
            map=str(folder / elf.removesuffix(".elf")) + ".map" if isinstance(elf, str) else None,
            project=str(about.get("project_name") or ""),
            version=str(about.get("project_version") or ""),
        )

    def _env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "IDF_PATH": str(self._at.path),
            "IDF_TOOLS_PATH": str(self._at.tools),
            "IDF_CCACHE_ENABLE": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
            # The checkout belongs to another user than the build's, which git refuses by default.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }

    def _mounts(self) -> tuple[Mount, ...]:
        shown = [self._at.path, self._at.tools]
        for venv in sorted((self._at.tools / "python_env").iterdir()):
            prefix = base_prefix(venv)
            if prefix is not None and prefix not in shown:
                shown.append(prefix)
        return tuple(Mount(path, str(path)) for path in shown)


def _check_project(project: Path, wish: BuildWish) -> None:
    if wish.environment is not None and wish.environment != wish.target:
        raise EnvironmentUnknown(
            f"an ESP-IDF project has no environment {wish.environment}",
            remedy="Leave `--env` out: `--target` chooses the chip.",
        )
    try:
        cmake = (project / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cmake = ""
    if not _PROJECT_CMAKE.search(cmake):
        raise ProjectConfigInvalid(
            "CMakeLists.txt does not include ESP-IDF's project.cmake",
            remedy="Name the folder of an ESP-IDF project: its CMakeLists.txt has "
            "`include($ENV{IDF_PATH}/tools/cmake/project.cmake)`.",
        )
    sdkconfig = project / "sdkconfig"
    if sdkconfig.is_file() and not sdkconfig.is_symlink():
        found = _SDKCONFIG_TARGET.search(sdkconfig.read_text("utf-8", errors="replace"))
        if found and found[1] != wish.target:
            raise TargetUnsupported(
                f"the project's sdkconfig is for {found[1]}, not {wish.target}",
                remedy=f"Name sdkconfig in .aegisignore, or build it with `--target {found[1]}`.",
            )


def _names(flasher: dict[str, Any]) -> dict[str, str]:
    """Image names by file: the entries besides flash_files that have a `file`."""
    names = {}
    for key, entry in flasher.items():
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            names[entry["file"]] = _FLASHER_NAMES.get(key, key)
    return names


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{name} is not JSON") from exc
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")  # noqa: TRY004  of what a build wrote
    return value
