"""Makes builds: what is wrong with one is said before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from aegis_protocol.failures.source import UploadIncomplete, WorkspaceBusy

from aegis_agent.build.build import Build
from aegis_agent.build.request import BuildRequest
from aegis_agent.results import ResultStore
from aegis_agent.sandbox import Sandbox
from aegis_agent.source import SourceStore
from aegis_agent.toolchains import BuildPlan, BuildWish, ToolchainKind, Toolchains


class Builder:
    """
    sign       the agent's signature over a statement: 64 bytes
    silence_s  how long a build may print nothing
    """

    def __init__(
        self,
        *,
        sources: SourceStore,
        results: ResultStore,
        toolchains: Toolchains,
        sandbox: Sandbox,
        sign: Callable[[bytes], bytes],
        silence_s: float = 600,
    ) -> None:
        self._sources = sources
        self._results = results
        self.toolchains = toolchains
        self._sandbox = sandbox
        self._sign = sign
        self._silence_s = silence_s
        self._sandbox_works = False

    async def prepare(self, request: BuildRequest) -> Build:
        """
        Return the build that would run.

        Raises
        ------
        UploadIncomplete    some of the source is not here
        WorkspaceBusy       another build has the project's workspace
        SandboxUnavailable  no build runs on this machine
        what the toolchain finds wrong or missing (failures/toolchain.py)
        """
        if request.planned.missing_count:
            raise UploadIncomplete(
                f"{request.planned.missing_count} files of the project are not here yet"
            )
        if self._sources.busy(request.identity, request.planned.plan):
            raise WorkspaceBusy("another build of this project is running on the agent")
        if not self._sandbox_works:
            await self._sandbox.check()
            self._sandbox_works = True
        params = request.params
        kind = self.toolchains.choose(request.planned.plan, params.toolchain)
        wish = BuildWish(
            target=params.target,
            environment=params.environment,
            jobs=max(1, int(request.cpu_cores)),
            verbose=params.verbose,
            network=self._sandbox.network,
        )
        plan = await asyncio.to_thread(self._plan, request, kind, wish)
        return Build(
            request,
            kind=kind,
            plan=plan,
            sources=self._sources,
            results=self._results,
            sandbox=self._sandbox,
            sign=self._sign,
            silence_s=self._silence_s,
        )

    def _plan(self, request: BuildRequest, kind: ToolchainKind, wish: BuildWish) -> BuildPlan:
        with self._sources.scratch() as scratch:
            project = Path(scratch) / "project"
            project.mkdir()
            self._sources.outline(request.identity, request.planned, project)
            return kind.plan(project, wish)
