"""The toolchains that this agent has, and which of them builds a project."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import structlog
from aegis_protocol.failures.toolchain import ProjectNotPlatformIO, ToolchainMissing
from aegis_protocol.http_api import Toolchain
from aegis_protocol.source import SourcePlan

from aegis_agent.toolchains.kind import ToolchainKind
from aegis_agent.toolchains.platformio import PlatformIO

log = structlog.get_logger()


class Toolchains:
    """
    found    each toolchain that is installed, with its version and targets
    targets  the chips that any of them builds for
    """

    def __init__(self, kinds: Iterable[tuple[ToolchainKind, Toolchain]]) -> None:
        found = list(kinds)
        self._kinds = {toolchain.kind: kind for kind, toolchain in found}
        self.found: tuple[Toolchain, ...] = tuple(toolchain for _, toolchain in found)
        self.targets: tuple[str, ...] = tuple(
            sorted({target for toolchain in self.found for target in toolchain.targets})
        )

    @classmethod
    async def detect(cls, *, platformio_home: Path) -> Self:
        """
        Look for what is installed. A toolchain that came later is seen by the next call.

        platformio_home  as `platformio_home.install` makes it
        """
        table: list[ToolchainKind] = [PlatformIO(platformio_home)]
        found = []
        for kind in table:
            toolchain = await asyncio.to_thread(kind.detect)
            if toolchain is not None:
                found.append((kind, toolchain))
                log.info(
                    "toolchain.found",
                    kind=toolchain.kind,
                    version=toolchain.version,
                    targets=toolchain.targets,
                )
        return cls(found)

    def choose(self, plan: SourcePlan, wanted: str | None) -> ToolchainKind:
        """
        Return the kind that builds the project of `plan`.

        wanted  its name, where one was asked for

        Raises ToolchainMissing, ProjectNotPlatformIO.
        """
        if wanted is not None:
            if wanted not in self._kinds:
                has = ", ".join(self._kinds) or "none"
                raise ToolchainMissing(f"this agent has no toolchain {wanted}; it has: {has}")
            return self._kinds[wanted]
        for kind in self._kinds.values():
            if kind.recognizes(plan):
                return kind
        if PlatformIO.is_project(plan):
            raise ToolchainMissing("the project is for PlatformIO, which this agent does not have")
        raise ProjectNotPlatformIO("there is no platformio.ini in the project's folder")
