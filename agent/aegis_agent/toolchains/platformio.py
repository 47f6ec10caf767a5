"""PlatformIO: the agent's own installation, driven by `pio run`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

import structlog
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.model import Wire
from aegis_protocol.source import SourcePlan
from pydantic import Field

from aegis_agent import platformio_home
from aegis_agent.platformio_home import PreflightPlan
from aegis_agent.sandbox import Mount
from aegis_agent.toolchains.interpreter import base_prefix
from aegis_agent.toolchains.kind import BuildPlan, BuildWish, Described, DescribedImage, ReadFile

log = structlog.get_logger()

_CORE: Final = "/core"
"""Where every build finds its core directory: commands have the path in them."""
_SCRIPT: Final = "/aegis/platformio_layout.py"
_LAYOUT: Final = f"{_CORE}/aegis-layout.json"
_USUAL_NAMES: Final = ("bootloader", "partitions")
_TARGET: Final = re.compile(r"^[a-z][a-z0-9]{1,19}$")


class _LayoutImage(Wire):
    offset: str = Field(max_length=80)
    path: str = Field(max_length=4096)


class _Layout(Wire):
    """What platformio_layout.py writes."""

    program: str = Field(min_length=1, max_length=4096)
    application_offset: str = Field(max_length=80)
    images: tuple[_LayoutImage, ...] = Field(max_length=31)


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
        if not platformio_home.is_current(self._home):
            log.warning(
                "toolchain.outdated",
                kind=self.kind,
                home=str(self._home),
                remedy="It was installed by another version: run `aegis-agent toolchains install`.",
            )
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
            env={
                **platformio_home.environment(self._home, core=Path(_CORE)),
                # Added after the project's own: it sees what they have changed.
                "PLATFORMIO_EXTRA_SCRIPTS": f"post:{_SCRIPT}",
                "AEGIS_LAYOUT": _LAYOUT,
            },
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

    def described(self, plan: BuildPlan, read: ReadFile) -> Described:
        layout = _Layout.model_validate_json(read(_LAYOUT))
        program = PurePosixPath(layout.program)
        images = [
            DescribedImage(
                name=_image_name(image.path), path=image.path, offset=_offset(image.offset)
            )
            for image in layout.images
        ]
        app = DescribedImage(
            name="app",
            path=str(program.with_suffix(".bin")),
            offset=_offset(layout.application_offset),
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
        script = Mount(Path(__file__).with_name("platformio_layout.py").resolve(), _SCRIPT)
        return (script, *(Mount(path.resolve(), str(path)) for path in shown))

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


def _offset(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no offset") from None


def _image_name(path: str) -> str:
    stem = PurePosixPath(path).stem
    for name in _USUAL_NAMES:
        if stem.startswith(name):
            return name
    return stem
