"""
One job: its tasks, its peers, and the time that it has.

It ends once, by whoever asks first: a peer's `job.end`, its time, control's word, or by having had
neither peer nor running task for a while. From then on nothing new begins in it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from aegis_links.spool import Spool
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import SessionOver
from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.http import JobOver
from aegis_protocol.grant import GrantClaims
from aegis_protocol.ids import new_id
from aegis_protocol.model import Wire
from aegis_protocol.rpc import TaskChanged, TaskKind, TaskProgress
from aegis_protocol.states import JobState, TaskState, move

from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.tasks import Task

log = structlog.get_logger()

_MOST_TASKS: Final = 64
"""Of older ones that have ended, only what a build has left in the results is kept."""

Ending = tuple[JobState, AegisError | None]


class Peer(Protocol):
    """A connection of a job, as the job sees it."""

    @property
    def jti(self) -> str:
        """The grant that opened it."""

    def may_see(self, task: Task) -> bool:
        """Tell whether the peer's grant lets it know of `task`."""

    def notify(self, method: str, params: Wire) -> None:
        """Tell the peer, without waiting."""

    def stream_added(self, task: Task) -> None:
        """A task with a stream began."""

    def stream_removed(self, task: Task) -> None:
        """Its stream can't be read any more."""

    def close(self, error: AegisError | None) -> None:
        """End the connection, with the reason."""


class Job:
    """
    folder  the job's own, on the state's file system; gone with the job
    boards  the boards that it holds, with the highest fencing number that a grant had
    """

    def __init__(self, claims: GrantClaims, *, slot: int, folder: Path) -> None:
        self.job_id = claims.job_id
        self.identity = claims.sub
        self.attempt = claims.attempt
        self.execution = claims.execution
        self.boards: dict[str, int] = {}
        self.slot = slot
        self.folder = folder
        self.tasks: dict[str, Task] = {}
        self.peers: set[Peer] = set()
        """The connections that are open, or opening."""
        self.project_key: str | None = None
        self.state = JobState.ASSIGNED
        self.starting_build = asyncio.Lock()
        """Held from the look for a running build until there is one."""
        self.ends_at = 0.0
        self._started_mono = self._ends_mono = 0.0
        self._start_time()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._next_stream = 1
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._ending: Ending | None = None
        self._parting: tuple[str, Ending] | None = None
        self._clearing = OwnedTasks()

    @property
    def ended(self) -> Ending:
        """How it ended, once it has."""
        assert self._ending is not None
        return self._ending

    @property
    def ending(self) -> bool:
        """Whether the end was asked for, or has come."""
        return self._ending is not None or self._parting is not None

    def check_open(self) -> None:
        """Raise JobOver when nothing new may begin."""
        if self.ending:
            raise JobOver("the job is over", job_id=self.job_id)

    def new_task(
        self,
        kind: TaskKind,
        *,
        spool: Spool | None,
        board_id: str | None = None,
        task_id: str | None = None,
    ) -> Task:
        """Register a task; one with a spool gets the next stream number. JobOver."""
        self.check_open()
        stream = None
        if spool is not None:
            stream, self._next_stream = self._next_stream, self._next_stream + 1
        task = Task(
            kind,
            task_id=task_id or new_id(),
            on_change=self._changed,
            stream=stream,
            spool=spool,
            board_id=board_id,
        )
        self.tasks[task.task_id] = task
        self._forget_oldest()
        if spool is not None:
            for peer in list(self.peers):
                peer.stream_added(task)
        return task

    def run(self, task: Task, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which moves `task` to its end; the job owns and awaits it."""
        running = asyncio.create_task(work, name=f"{task.kind}-{task.task_id}")
        self._running[task.task_id] = running
        running.add_done_callback(lambda _: self._done(task, running))

    async def cancel(self, task: Task) -> None:
        """Cancel `task` and wait until nothing of it is left."""
        running = self._running.get(task.task_id)
        if running is not None:
            await _begun()
            running.cancel()
            await asyncio.wait([running])

    def task(self, task_id: str) -> Task:
        try:
            return self.tasks[task_id]
        except KeyError:
            raise TaskNotFound(f"this job has no task {task_id}") from None

    def notify(self, method: str, params: TaskChanged | TaskProgress) -> None:
        """Tell every peer that may know of the task."""
        about = params.task_id if isinstance(params, TaskProgress) else params.task.task_id
        task = self.tasks.get(about)
        for peer in list(self.peers):
            if task is not None and peer.may_see(task):
                peer.notify(method, params)

    def tell_progress(
        self, task: Task, phase: str, done: int, total: int, detail: str = ""
    ) -> None:
        """Tell every peer that may know of `task` how far it is; total 0: not known."""
        progress = TaskProgress(
            task_id=task.task_id, phase=phase, done=done, total=total, detail=detail[:200]
        )
        self.notify("task.progress", progress)

    def remaining_s(self) -> float:
        return max(0.0, self._ends_mono - time.monotonic())

    def extend(self, timeout_secs: int, *, max_job_secs: int) -> None:
        """Give the job `timeout_secs` from now, within what the agent allows in all. JobOver."""
        self.check_open()
        until = min(time.monotonic() + timeout_secs, self._started_mono + max_job_secs)
        if until > self._ends_mono:
            self.ends_at += until - self._ends_mono
            self._ends_mono = until
            self._wake.set()

    def end(self, state: JobState, error: AegisError | None = None) -> None:
        """Ask for the end; the first to ask says how."""
        if self._ending is None:
            self._ending = (state, error)
        self._wake.set()

    def end_after_flash(self, board_id: str, state: JobState, error: AegisError) -> None:
        """Ask for the end once no flash of `board_id` runs; its console is cut at once."""
        if self._parting is None:
            self._parting = (board_id, (state, error))
        for task in self._live_tasks("monitor", board_id):
            self._running[task.task_id].cancel()
        self._wake.set()

    def attach(self, peer: Peer) -> None:
        """A connection is being opened. JobOver when it comes too late."""
        self.check_open()
        self.peers.add(peer)
        self._wake.set()

    def joined(self) -> None:
        """A connection is open: the first starts the job's time."""
        if self.state is JobState.ASSIGNED:
            self.state = move(self.state, JobState.RUNNING)
            self._start_time()
            self._wake.set()

    def left(self, peer: Peer) -> None:
        """A connection is closed: others may type now."""
        self.peers.discard(peer)
        for task in self.tasks.values():
            task.readers.discard(peer)
            if task.writer is peer:
                task.writer = None
        self._wake.set()
        self._left.set()

    def outcome(self) -> JobState:
        """How a job that its client ends has gone: as its last build or flash did."""
        work = [task for task in self.tasks.values() if task.kind != "monitor"]
        match work[-1].state if work else None:
            case TaskState.FAILED:
                return JobState.FAILED
            case TaskState.CANCELED | TaskState.RUNNING | TaskState.PENDING:
                return JobState.CANCELED
            case _:
                return JobState.SUCCEEDED

    async def lived(self, *, linger_s: float) -> None:
        """
        Wait for the job's end; nothing of it runs then, and `ended` says how it went: `pending`
        where nobody ever came, and it is control's again.
        """
        try:
            await self._until_end(linger_s)
        finally:
            self.end(JobState.FAILED, AegisError("the agent failed while it kept this job"))
            await self._stopped()
        self.state = move(self.state, self.ended[0])

    async def deserted(self, *, deadline_s: float) -> bool:
        """Wait until no connection is left; False when there is one at the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                while self.peers:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True

    async def _until_end(self, linger_s: float) -> None:
        idle_since: float | None = None
        while self._ending is None:
            now = time.monotonic()
            if now >= self._ends_mono:
                self.end(JobState.EXPIRED, SessionOver("the job's time is over"))
                return
            if self._parting is not None and not self._live_tasks("flash", self._parting[0]):
                self.end(*self._parting[1])
                return
            idle = not self.peers and not self._busy()
            idle_since = (idle_since or now) if idle else None
            if idle_since is not None and now - idle_since >= linger_s:
                nobody_came = self.state is JobState.ASSIGNED
                self.end(JobState.PENDING if nobody_came else self.outcome())
                return
            until = self._ends_mono if idle_since is None else idle_since + linger_s
            self._wake.clear()
            try:
                async with asyncio.timeout(max(0.01, min(until, self._ends_mono) - now)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _stopped(self) -> None:
        """Cancel all that runs and wait until it has ended, and its peers are being told."""
        await _begun()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._clearing.cancel()

    def _start_time(self) -> None:
        self._started_mono = time.monotonic()
        self._ends_mono = self._started_mono + self.execution.timeout_secs
        self.ends_at = time.time() + self.execution.timeout_secs

    def _busy(self) -> bool:
        return any(not task.over and task.kind != "monitor" for task in self.tasks.values())

    def _live_tasks(self, kind: TaskKind, board_id: str) -> list[Task]:
        return [
            task
            for task in self.tasks.values()
            if (task.kind, task.board_id) == (kind, board_id) and task.task_id in self._running
        ]

    def _forget_oldest(self) -> None:
        over = [task for task in self.tasks.values() if task.over]
        for task in over[: max(0, len(self.tasks) - _MOST_TASKS)]:
            del self.tasks[task.task_id]
            if task.spool is not None:
                for peer in list(self.peers):
                    peer.stream_removed(task)
                task.spool.close()
                removing = asyncio.to_thread(shutil.rmtree, self.folder / task.task_id, True)
                self._clearing.start(removing, name=f"forget-{task.task_id}")

    def _changed(self, task: Task) -> None:
        log.info(
            "task.changed",
            job_id=self.job_id,
            task_id=task.task_id,
            kind=task.kind,
            state=str(task.state),
            code=task.error.code if task.error else None,
        )
        self.notify("task.changed", TaskChanged(task=task.info()))
        self._wake.set()

    def _done(self, task: Task, running: asyncio.Task[None]) -> None:
        self._running.pop(task.task_id, None)
        bug = None if running.cancelled() else running.exception()
        if bug is not None:
            log.error("task.crashed", task_id=task.task_id, kind=task.kind, exc_info=bug)
        if not task.over:
            if bug is not None:
                task.fail(AegisError("the agent failed while it worked on this task"))
            else:
                task.cancel(self._ending[1] if self._ending else None)
        self._wake.set()


async def _begun() -> None:
    """
    Let tasks that were made in this moment take their first step: one that is canceled before it
    never runs, and neither does its clean-up.
    """
    await asyncio.sleep(0)
