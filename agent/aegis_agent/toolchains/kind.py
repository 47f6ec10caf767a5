"""What every kind of toolchain can do, and the data that passes between it and a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.source import SourcePlan

from aegis_agent.sandbox import Mount

PROJECT = "/project"
"""Where every build finds its workspace."""


ReadFile = Callable[[str], bytes]


@dataclass(frozen=True)
class BuildWish:
    """
    What is to be built.

    jobs     compilers at once
    network  whether the build will reach the network
    """

    target: str
    environment: str | None
    jobs: int
    verbose: bool
    network: bool


@dataclass(frozen=True)
class BuildPlan:
    """
    What would run, in the sandbox, in /project.

    version      of the toolchain
    platform     what builds for the chip, with its version, for the manifest
    command      what builds
    env, mounts  what it needs besides the project
    shared       folders in the sandbox, each with the toolchain's read-only folder that it shows:
                 images may come from there too
    """

    kind: str
    version: str
    platform: str
    environment: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    shared: Mapping[str, Path]


@dataclass(frozen=True)
class DescribedImage:
    """An image of the flash. path: as the build saw it; offset: bytes from the flash's start."""

    name: str
    path: str
    offset: int


@dataclass(frozen=True)
class Described:
    """What a build made. project and version: empty where only the image itself knows."""

    images: tuple[DescribedImage, ...]
    elf: str | None = None
    map: str | None = None
    project: str = ""
    version: str = ""


class ToolchainKind(Protocol):
    """A row of the table."""

    @property
    def kind(self) -> str:
        """Its name on the wire."""

    @property
    def kept(self) -> frozenset[str]:
        """Names at a project's top that builds make and the next build may use."""

    def detect(self) -> Toolchain | None:
        """Return what of it is installed, or None. Blocks, for less than a second."""

    def recognizes(self, plan: SourcePlan) -> bool:
        """Tell by its file names whether a project is of this kind."""

    def plan(self, project: Path, wish: BuildWish) -> BuildPlan:
        """
        Return what a build would run. Blocks, for less than a second; nothing of the project runs.

        project  its files, as the client sent them

        Raises what is wrong with the project, or missing on the agent (failures/toolchain.py).
        """

    def prepare(self, scratch: Path) -> tuple[Mount, ...]:
        """Make in `scratch`, new and empty, what one build needs for itself; how to mount it."""

    def described(self, plan: BuildPlan, read: ReadFile) -> Described:
        """
        Return what a build that succeeded has made.

        read  gives the content of a file that the build wrote, by its path in the sandbox

        Raises ValueError when what the build wrote makes no sense, and what `read` raises.
        """
