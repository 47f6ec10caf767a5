"""PlatformIO: the agent's own installation, driven by `pio run`."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

from aegis_protocol.http_api import Toolchain
from aegis_protocol.source import SourcePlan

from aegis_agent import platformio_home
from aegis_agent.platformio_home import PreflightPlan
from aegis_agent.sandbox import Mount
from aegis_agent.toolchains.interpreter import base_prefix
from aegis_agent.toolchains.kind import BuildPlan, BuildWish, Described, DescribedImage

_CORE: Final = "/core"
"""Where every build finds its core directory: commands have the path in them."""
_DEFAULT_APP_OFFSET: Final = 0x10000
_USUAL_NAMES: Final = ("bootloader", "partitions")
_TARGET: Final = re.compile(r"^[a-z][a-z0-9]{1,19}$")


class PlatformIO:
    """home: as `platformio_home.install` makes it."""

    kind: Final = "platformio"
    kept: Final = frozenset({".pio"})

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()

    def detect(self) -> Toolchain | None:
        version = self._version()
        if version is None or not platformio_home.is_complete(self._home):
            return None
        targets = tuple(t for t in platformio_home.targets(self._home) if _TARGET.match(t))
        return Toolchain(kind=self.kind, version=version, targets=targets)

    @staticmethod
    def is_project(plan: SourcePlan) -> bool:
        return any(file.path == "platformio.ini" for file in plan.files)

    def recognizes(self, plan: SourcePlan) -> bool:
        return self.is_project(plan)

    def plan(self, project: Path, wish: BuildWish) -> BuildPlan:
        found = platformio_home.plan_build(
            project, self._home, target=wish.target, environment=wish.environment
        )
        if not wish.network or any(one.kind != "library" for one in found.missing):
            found.ensure_complete()
        make = (
            platformio_home.verbose_build_command if wish.verbose else platformio_home.build_command
        )
        return BuildPlan(
            kind=self.kind,
            version=self._version() or "",
            platform=_platform(found),
            environment=found.environment,
            command=tuple(make(self._home, found.environment, jobs=wish.jobs)),
            describe=tuple(platformio_home.metadata_command(self._home, found.environment)),
            env=platformio_home.environment(self._home, core=Path(_CORE)),
            mounts=self._mounts(),
            shared={
                f"{_CORE}/packages": self._layout.packages,
                f"{_CORE}/platforms": self._layout.platforms,
                str(self._layout.core): self._layout.core,
            },
        )

    def prepare(self, scratch: Path) -> tuple[Mount, ...]:
        core = platformio_home.prepare_core(self._layout.core, scratch / "core")
        return (Mount(core, _CORE, writable=True),)

    def described(self, plan: BuildPlan, said: bytes) -> Described:
        facts = _facts(said, plan.environment)
        program = PurePosixPath(_text(facts, "prog_path"))
        extra = facts.get("extra")
        extra = extra if isinstance(extra, dict) else {}
        images = [
            DescribedImage(
                name=_image_name(_text(image, "path")),
                path=_text(image, "path"),
                offset=_offset(image.get("offset")),
            )
            for image in extra.get("flash_images", [])
            if isinstance(image, dict)
        ]
        app = DescribedImage(
            name="app",
            path=str(program.with_suffix(".bin")),
            offset=_offset(extra.get("application_offset", _DEFAULT_APP_OFFSET)),
        )
        return Described(
            images=(*images, app),
            elf=str(program) if program.suffix == ".elf" else None,
            map=str(program.with_suffix(".map")),
        )

    def _mounts(self) -> tuple[Mount, ...]:
        layout = self._layout
        shown = [layout.venv, layout.core]
        prefix = base_prefix(layout.venv)
        if prefix is not None:
            shown.append(prefix)
        return tuple(Mount(path.resolve(), str(path)) for path in shown)

    @property
    def _layout(self) -> platformio_home.Layout:
        return platformio_home.Layout(self._home)

    def _version(self) -> str | None:
        infos = self._layout.venv.glob("lib/python*/site-packages/platformio-*.dist-info")
        versions = [path.name.removesuffix(".dist-info").partition("-")[2] for path in infos]
        return versions[0] if versions else None


def _platform(found: PreflightPlan) -> str:
    name = found.platform.strip()[:160]
    return f"{name} {found.platform_version}" if found.platform_version else name


def _facts(said: bytes, environment: str) -> dict[str, Any]:
    # A project's scripts may print too: what counts is the last line that is such an object.
    for line in reversed(said.splitlines()):
        if not line.startswith(b"{"):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get(environment), dict):
            facts: dict[str, Any] = value[environment]
            return facts
    raise ValueError("PlatformIO did not say where the images are")


def _text(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"PlatformIO's metadata has no {name}")
    return value


def _offset(value: object) -> int:
    try:
        return int(value, 0) if isinstance(value, str) else int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{value!r} is no offset") from exc


def _image_name(path: str) -> str:
    stem = PurePosixPath(path).stem
    for name in _USUAL_NAMES:
        if stem.startswith(name):
            return name
    return stem
