"""
One build: lay the source out, run the toolchain on a terminal, collect what it left.

    sync -> preflight -> compile, link, size (read from the output) -> artifacts
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from aegis_protocol import __version__
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.build import BuildTimedOut
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.manifest import Artifact, BuildInfo, Diagnostic, Manifest, canonical
from aegis_protocol.rpc import BuildResult

from aegis_agent.build.collect import Collection
from aegis_agent.build.execution import execute
from aegis_agent.build.log_file import LogFile
from aegis_agent.build.reading import OutputReading
from aegis_agent.build.request import BuildOutcome, BuildRequest, OnProgress, Output
from aegis_agent.build.sink import Sink
from aegis_agent.build.terminal import BuildTerminal
from aegis_agent.build.verdict import verdict
from aegis_agent.disk.trees import hand_over, opened_folder
from aegis_agent.results import ResultDraft, ResultStore
from aegis_agent.sandbox import Limits, Mount, Sandbox, SandboxSpec, uninterrupted
from aegis_agent.source import SourceStore, Workspace
from aegis_agent.toolchains import BuildPlan, ToolchainKind
from aegis_agent.toolchains.kind import PROJECT

log = structlog.get_logger()

_RESULT_DIAGNOSTICS: Final = 50
_WORKSPACE_S: Final = 5.0
_COLORS: Final = {"TERM": "xterm-256color", "PLATFORMIO_FORCE_ANSI": "true"}
_NO_COLORS: Final = {"TERM": "dumb", "PLATFORMIO_NO_ANSI": "true"}
_LEAST_MEMORY_BYTES: Final = 2 << 30
"""Address space, not memory: a compiler maps far more than it touches."""


class Build:
    """environment and toolchain: what `prepare` chose."""

    def __init__(
        self,
        request: BuildRequest,
        *,
        kind: ToolchainKind,
        plan: BuildPlan,
        sources: SourceStore,
        results: ResultStore,
        sandbox: Sandbox,
        sign: Callable[[bytes], bytes],
        silence_s: float,
    ) -> None:
        self.environment = plan.environment
        self.toolchain = plan.kind
        self._request = request
        self._kind = kind
        self._plan = plan
        self._sources = sources
        self._results = results
        self._sandbox = sandbox
        self._sign = sign
        self._silence_s = silence_s
        self._terminal: BuildTerminal | None = None
        self._size = (request.params.terminal.cols, request.params.terminal.rows)

    async def run(self, spool: Output, on_progress: OnProgress) -> BuildOutcome:
        """
        Build, with the terminal's output going to `spool`; once.

        What the project did wrong is in the outcome, whose result is kept for the identity: log
        and errors when it failed, also when it was canceled. Canceling it kills the whole tree
        before this returns.
        """
        started_at = time.time()
        reading = OutputReading(on_progress)
        made = _Made()
        error: AegisError | None = None
        request = self._request
        with (
            self._results.draft(request.identity, request.task_id) as draft,
            LogFile(draft.folder.parent / "log") as kept,
        ):
            sink = Sink((spool, kept), reading, color=request.params.terminal.color)
            try:
                async with asyncio.timeout(request.timeout_s):
                    await self._build(draft, reading, sink, made)
            except asyncio.CancelledError:
                self._keep(draft, kept, reading, started_at, made)
                raise
            except TimeoutError:
                error = BuildTimedOut(f"the build took more than {request.timeout_s:g} s")
            except AegisError as exc:
                error = exc
            if error is not None:
                made.manifest = None
            keeping = asyncio.to_thread(self._keep, draft, kept, reading, started_at, made)
            try:
                artifacts = await uninterrupted(keeping)
            except DiskFull as exc:
                artifacts, made.manifest, error = (), None, error or exc
        result = BuildResult(
            manifest=made.manifest,
            artifacts=artifacts,
            diagnostics=_worst_first(reading.diagnostics.found),
            size=reading.size,
            duration_s=round(time.time() - started_at, 3),
            warm=made.warm,
        )
        log.info(
            "build.ended",
            task_id=request.task_id,
            code=error.code if error else None,
            duration_s=result.duration_s,
            warm=made.warm,
        )
        return BuildOutcome(result, error)

    def resize(self, cols: int, rows: int) -> None:
        """Change the terminal's size, now or for when it opens."""
        self._size = (cols, rows)
        if self._terminal is not None:
            self._terminal.resize(cols, rows)

    def type(self, data: bytes) -> None:
        """Type into the terminal; before it opens and after it closed nothing happens."""
        if self._terminal is not None:
            self._terminal.type(data)

    async def _build(
        self, draft: ResultDraft, reading: OutputReading, sink: Sink, made: _Made
    ) -> None:
        request = self._request
        reading.tell("sync")
        async with self._workspace() as workspace:
            made.warm = workspace.warm
            mounts = await uninterrupted(asyncio.to_thread(self._lay_out, workspace))
            reading.tell("build", detail=self._plan.environment)
            status = await self._run_command(workspace, mounts, sink)
            reading.end()
            error = verdict(status, reading)
            if error is not None:
                raise error
            reading.tell("artifacts")
            collection = Collection(
                plan=self._plan,
                target=request.params.target,
                source_sha256=request.planned.source_sha256,
                writable={mount.target: mount.source for mount in mounts if mount.writable},
                sign=self._sign,
            )
            collecting = asyncio.to_thread(collection.collect, self._kind, draft)
            made.manifest = await uninterrupted(collecting)

    @contextlib.asynccontextmanager
    async def _workspace(self) -> AsyncIterator[Workspace]:
        request = self._request
        workspace = await self._sources.workspace(
            request.identity, request.planned, wait_s=_WORKSPACE_S
        )
        try:
            yield workspace
        finally:
            await uninterrupted(asyncio.to_thread(self._leave, workspace))

    def _leave(self, workspace: Workspace) -> None:
        workspace.close()
        try:
            self._sources.tidy()
        except DiskFull as exc:
            log.warning("disk.over_quota", detail=exc.message)

    def _lay_out(self, workspace: Workspace) -> tuple[Mount, ...]:
        owner = self._sandbox.owner(self._request.slot)
        if self._request.params.clean:
            workspace.clean(self._kind.kept)
        report = workspace.sync(self._request.planned.plan, keep=self._kind.kept, owner=owner)
        log.info(
            "workspace.synced",
            task_id=self._request.task_id,
            written=report.written,
            removed=report.removed,
            unchanged=report.unchanged,
        )
        scratch = workspace.fresh_scratch()
        mounts = self._kind.prepare(scratch)
        if owner is not None:
            with opened_folder(scratch) as fd:
                hand_over(fd, owner.uid, owner.gid)
        return (Mount(workspace.project, PROJECT, writable=True), *self._plan.mounts, *mounts)

    async def _run_command(
        self, workspace: Workspace, mounts: tuple[Mount, ...], sink: Sink
    ) -> int:
        spec = self._spec(mounts)
        cols, rows = self._size
        with BuildTerminal(cols, rows, on_output=sink.take) as terminal:
            self._terminal = terminal
            try:
                return await execute(
                    self._sandbox,
                    spec,
                    terminal,
                    heard=sink.heard,
                    silence_s=self._silence_s,
                    disk=workspace.folder,
                )
            finally:
                self._terminal = None

    def _spec(self, mounts: tuple[Mount, ...]) -> SandboxSpec:
        request = self._request
        limits = Limits(
            memory_bytes=max(_LEAST_MEMORY_BYTES, request.memory_mb << 20),
            cpu_s=int(request.timeout_s) + 60,
        )
        colors = _COLORS if request.params.terminal.color else _NO_COLORS
        return SandboxSpec(
            argv=self._plan.command,
            env={**self._plan.env, **colors},
            slot=request.slot,
            mounts=mounts,
            cwd=PROJECT,
            network=self._sandbox.network,
            terminal=True,
            limits=limits,
        )

    def _keep(
        self,
        draft: ResultDraft,
        kept: LogFile,
        reading: OutputReading,
        started_at: float,
        made: _Made,
    ) -> tuple[Artifact, ...]:
        """Commit what there is: without a manifest only the log, the errors and the times."""
        if made.manifest is None:
            draft.drop_all()
        kept.move_to(draft.path("build.log"))
        draft.add("build.log", "log")
        found = [one.model_dump(mode="json") for one in reading.diagnostics.found]
        draft.write("diagnostics.json", "diagnostics", canonical(found))
        info = BuildInfo(
            task_id=self._request.task_id,
            job_id=self._request.job_id,
            agent_id=self._request.agent_id,
            started_at=started_at,
            ended_at=time.time(),
            agent_version=__version__,
            warm=made.warm,
            size=reading.size,
        )
        draft.write("build.json", "build", canonical(info.model_dump(mode="json")))
        return draft.commit()


@dataclass
class _Made:
    warm: bool = False
    manifest: Manifest | None = None


def _worst_first(found: list[Diagnostic]) -> tuple[Diagnostic, ...]:
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda one: order[one.severity])[:_RESULT_DIAGNOSTICS])
