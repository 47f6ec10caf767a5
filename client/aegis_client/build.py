"""One build on the agent: start it, watch its terminal, cancel it with the one who asked for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.failures.board import FlashCanceled
from aegis_protocol.failures.build import BuildCanceled, BuildFailed
from aegis_protocol.frames import StreamGap
from aegis_protocol.rpc import (
    BuildStartParams,
    BuildStartResult,
    TaskInfo,
    TaskParams,
    Terminal,
)
from aegis_protocol.states import TaskState

from aegis_client.connection import Connection
from aegis_client.project import Project
from aegis_client.records import TaskRecord, TaskRecords
from aegis_client.reporter import Reporter
from aegis_client.resumed_view import ResumedView
from aegis_client.session import Session
from aegis_client.upload import Uploaded, upload

START_S: Final = 120.0
CANCEL_S: Final = 3.0
DRAIN_S: Final = 10.0

_log = structlog.get_logger("aegis_client.build")


@dataclass(frozen=True)
class BuildOptions:
    """As in `BuildStartParams`. terminal: of whoever watches."""

    target: str
    environment: str | None = None
    toolchain: str | None = None
    clean: bool = False
    verbose: bool = False
    terminal: Terminal = field(default_factory=Terminal)


@dataclass(frozen=True)
class StartedBuild:
    task_id: str
    stream: int
    environment: str
    toolchain: str
    uploaded: Uploaded


async def start_build(
    session: Session,
    project: Project,
    options: BuildOptions,
    records: TaskRecords,
    reporter: Reporter,
) -> StartedBuild:
    """Send what the agent lacks of the project and start a build of it; keep a record of it."""
    before = frozenset(session.tasks)

    async def step(connection: Connection) -> tuple[Uploaded, BuildStartResult]:
        begun = session.new_task("build", before)
        if begun is not None and begun.stream is not None:
            # It was started on a connection that was lost before it could say so.
            return Uploaded("", 0, 0), BuildStartResult(
                task_id=begun.task_id,
                stream=begun.stream,
                toolchain=options.toolchain or "platformio",
                environment=options.environment or options.target,
            )
        uploaded = await upload(connection, project, reporter)
        params = BuildStartParams(
            plan_id=uploaded.plan_id,
            target=options.target,
            environment=options.environment,
            toolchain=options.toolchain,
            clean=options.clean,
            verbose=options.verbose,
            terminal=options.terminal,
        )
        return uploaded, await connection.call(
            "build.start", params, BuildStartResult, deadline_s=START_S
        )

    uploaded, result = await session.repeated(step)
    records.keep(
        TaskRecord(
            task_id=result.task_id,
            job_id=session.job_id,
            kind="build",
            url=records.url,
            agent_id=session.agent.id,
            agent_name=session.agent.name,
            target=options.target,
            environment=result.environment,
            project_dir=str(project.root),
            started_at=time.time(),
        )
    )
    return StartedBuild(
        result.task_id, result.stream, result.environment, result.toolchain, uploaded
    )


async def follow_build(
    session: Session,
    task_id: str,
    stream: int,
    records: TaskRecords,
    reporter: Reporter,
    sizes: AsyncIterator[tuple[int, int]] | None = None,
) -> TaskInfo:
    """
    Show the build's terminal until the build has ended and every byte was seen; return the task.

    sizes  (columns, rows) of the viewer's terminal, each time they change

    A failed build is returned, not raised: see `failure`.
    """
    view = ResumedView(session, ChannelName.PTY, stream)
    viewing = asyncio.create_task(_show(view, reporter, sizes), name="pty")
    try:
        task = await session.task_ended(task_id)
        await _drained(viewing, view, session, reporter)
    finally:
        viewing.cancel()
        with suppress(asyncio.CancelledError, AegisError):
            await viewing
    if task.build is None and task.state is not TaskState.CANCELED:
        task = await session.call("build.status", TaskParams(task_id=task_id), TaskInfo)
    records.ended(task)
    return task


async def cancel_build(session: Session, task_id: str) -> bool:
    """Cancel a build within CANCEL_S; tell whether the agent said that nothing of it runs."""
    try:
        await session.call_now(
            "build.cancel", TaskParams(task_id=task_id), TaskInfo, deadline_s=CANCEL_S
        )
    except AegisError as exc:
        _log.warning("build.not_canceled", task_id=task_id, code=exc.code)
        return False
    return True


def failure(task: TaskInfo) -> AegisError | None:
    """Return why a task that has ended did not succeed, None if it did."""
    if task.state is TaskState.SUCCEEDED:
        return None
    if task.error is not None:
        return from_body(task.error)
    if task.state is TaskState.CANCELED:
        kind = FlashCanceled if task.kind == "flash" else BuildCanceled
        return kind(f"the {task.kind} was canceled", task_id=task.task_id)
    return BuildFailed(f"the {task.kind} ended as {task.state}", task_id=task.task_id)


async def _show(
    view: ResumedView, reporter: Reporter, sizes: AsyncIterator[tuple[int, int]] | None
) -> None:
    resizing = asyncio.create_task(_resize(view, sizes), name="resizes")
    try:
        async with aclosing(aiter(view)) as events:
            async for event in events:
                if isinstance(event, StreamGap):
                    reporter.gap(event.start, event.stop)
                else:
                    await reporter.output(event.data)
    finally:
        resizing.cancel()
        with suppress(asyncio.CancelledError, AegisError):
            await resizing


async def _resize(view: ResumedView, sizes: AsyncIterator[tuple[int, int]] | None) -> None:
    if sizes is not None:
        async for cols, rows in sizes:
            await view.resize(cols, rows)


async def _drained(
    viewing: asyncio.Task[None], view: ResumedView, session: Session, reporter: Reporter
) -> None:
    """Wait for the rest of the output. It is all there by now: a long silence means it is lost."""
    before = -1
    while before != view.offset or not session.connected:
        before = view.offset
        done, _ = await asyncio.wait([viewing], timeout=DRAIN_S)
        if done:
            return viewing.result()
    reporter.note("the end of the build's output did not arrive; build.log has all of it")
    return None
