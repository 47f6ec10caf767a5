"""The toolchains that this agent has, and which of them builds a project."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import structlog
from aegis_protocol.failures.toolchain import ProjectNotPlatformIO, ToolchainMissing
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.source import SourcePlan

from aegis_agent.toolchains.esp_idf import EspIdf
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
        # Of several versions of one kind the newest stands first, and builds.
        self._kinds = {toolchain.kind: kind for kind, toolchain in reversed(found)}
        self.found: tuple[Toolchain, ...] = tuple(toolchain for _, toolchain in found)
        self.targets: tuple[str, ...] = tuple(
            sorted({target for toolchain in self.found for target in toolchain.targets})
        )

    @classmethod
    async def detect(
        cls, *, platformio_home: Path, environ: Mapping[str, str] | None = None
    ) -> Self:
        """
        Look for what is installed. A toolchain that came later is seen by the next call.

        platformio_home  as `platformio_home.install` makes it
        environ          where IDF_PATH, IDF_TOOLS_PATH and HOME say what there is of ESP-IDF;
                         this process's by default
        """
        environ = os.environ if environ is None else environ
        table: list[ToolchainKind] = [PlatformIO(platformio_home)]
        table += EspIdf.installations(environ, Path(environ.get("HOME") or "/nonexistent"))
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
        for name, is_project in (
            ("PlatformIO", PlatformIO.is_project),
            ("ESP-IDF", EspIdf.is_project),
        ):
            if is_project(plan):
                raise ToolchainMissing(f"the project is for {name}, which this agent has not got")
        raise ProjectNotPlatformIO("there is no platformio.ini in the project's folder")
