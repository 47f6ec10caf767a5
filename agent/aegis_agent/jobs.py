"""
The jobs that this agent has: each takes a slot and maybe boards, and outlives its connections.

A job begins with the first grant for it and ends by `job.end`, by its time, by control's word,
or when no peer and no running task were left for a while. Ending it cancels what runs, tells the
peers why, gives the boards back and frees the slot; its results stay.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import structlog
from aegis_links.spool import Spool
from aegis_protocol.control_link import HeldJob, JobMoved
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentBusy, SessionOver
from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.grant import GrantInvalid
from aegis_protocol.grant import GrantClaims
from aegis_protocol.ids import new_id
from aegis_protocol.model import Wire
from aegis_protocol.rpc import TaskChanged, TaskKind
from aegis_protocol.states import JobState, TaskState

from aegis_agent.boards import BoardRegistry
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.tasks import Task

log = structlog.get_logger()

_WARM_PROJECTS = 256


class Peer(Protocol):
    """A connection of a job, as the job sees it."""

    def notify(self, method: str, params: Wire) -> None:
        """Tell the peer, without waiting."""

    def stream_added(self, task: Task) -> None:
        """A task with a stream began."""

    def close(self, error: AegisError | None) -> None:
        """End the connection, with the reason."""


class Job:
    """One job: its tasks, its peers, and the time it has."""

    def __init__(self, claims: GrantClaims, *, slot: int, folder: Path) -> None:
        self.job_id = claims.job_id
        self.identity = claims.sub
        self.attempt = claims.attempt
        self.execution = claims.execution
        self.slot = slot
        self.folder = folder
        self.tasks: dict[str, Task] = {}
        self.peers: set[Peer] = set()
        self.project_key: str | None = None
        self.state = JobState.ASSIGNED
        self.ends_at = time.time() + claims.execution.timeout_secs
        self._ends_mono = time.monotonic() + claims.execution.timeout_secs
        self._started_mono = time.monotonic()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._next_stream = 1
        self._wake = asyncio.Event()
        self._ending: tuple[JobState, AegisError | None] | None = None
        self.over = asyncio.Event()

    def new_task(
        self,
        kind: TaskKind,
        *,
        spool: Spool | None,
        board_id: str | None = None,
        task_id: str | None = None,
    ) -> Task:
        """Register a task; one with a spool gets the next stream number."""
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
            running.cancel()
            await asyncio.wait([running])

    def task(self, task_id: str) -> Task:
        try:
            return self.tasks[task_id]
        except KeyError:
            raise TaskNotFound(f"this job has no task {task_id}") from None

    def stream(self, number: int) -> Task | None:
        return next((task for task in self.tasks.values() if task.stream == number), None)

    def notify(self, method: str, params: Wire) -> None:
        for peer in list(self.peers):
            peer.notify(method, params)

    def extend(self, timeout_secs: int, *, max_job_secs: int) -> None:
        """Give the job `timeout_secs` from now, within what the agent allows in all."""
        now = time.monotonic()
        until = min(now + timeout_secs, self._started_mono + max_job_secs)
        if until > self._ends_mono:
            self.ends_at += until - self._ends_mono
            self._ends_mono = until
            self._wake.set()

    def end(self, state: JobState, error: AegisError | None = None) -> None:
        """Ask for the end; the first to ask says how."""
        if self._ending is None:
            self._ending = (state, error)
        self._wake.set()

    def joined(self, peer: Peer) -> None:
        self.state = JobState.RUNNING
        self.peers.add(peer)
        self._wake.set()

    def left(self, peer: Peer) -> None:
        self.peers.discard(peer)
        self._wake.set()

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

    async def lived(self, *, linger_s: float) -> tuple[JobState, AegisError | None]:
        """Wait for the job's end and return how it ended; nothing of it runs then."""
        try:
            how = await self._until_end(linger_s)
        finally:
            for running in list(self._running.values()):
                running.cancel()
            if self._running:
                await asyncio.wait(list(self._running.values()))
        return how

    async def _until_end(self, linger_s: float) -> tuple[JobState, AegisError | None]:
        idle_since: float | None = None
        while self._ending is None:
            now = time.monotonic()
            if now >= self._ends_mono:
                return JobState.EXPIRED, SessionOver("the job's time is over")
            idle = not self.peers and not self._busy()
            idle_since = (idle_since or now) if idle else None
            if idle_since is not None and now - idle_since >= linger_s:
                return self.outcome(), None
            until = self._ends_mono if idle_since is None else idle_since + linger_s
            self._wake.clear()
            try:
                async with asyncio.timeout(max(0.01, min(until, self._ends_mono) - now)):
                    await self._wake.wait()
            except TimeoutError:
                continue
        return self._ending

    def _busy(self) -> bool:
        return any(not task.over and task.kind != "monitor" for task in self.tasks.values())

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
                task.cancel()
        self._wake.set()


class JobTable:
    """
    All jobs of the agent, and the slots that they take.

    report  tells control of a move; False when the link is down (it is told again by `unreported`)
    """

    def __init__(
        self,
        *,
        slots: int,
        folder: Path,
        boards: BoardRegistry,
        linger_s: float,
        report: Callable[[JobMoved], bool],
    ) -> None:
        self._free = set(range(slots))
        self._folder = folder
        self._boards = boards
        self._linger_s = linger_s
        self._report = report
        self._jobs: dict[str, Job] = {}
        self._owned = OwnedTasks()
        self._unreported: dict[str, JobMoved] = {}
        self._warm: dict[str, None] = {}
        self.closed_reason: str | None = None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs.values())

    @property
    def warm_projects(self) -> tuple[str, ...]:
        """The projects built here lately: control prefers this agent for them."""
        return tuple(self._warm)

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def admit(self, claims: GrantClaims) -> Job:
        """
        Return the job of `claims`, made and its boards held if it is new.

        Raises AgentBusy (no slot, or paused), and what holding a board raises.
        """
        job = self._jobs.get(claims.job_id)
        if job is not None:
            if job.identity != claims.sub:
                raise GrantInvalid("the grant's identity is not the job's")
            return job
        if self.closed_reason is not None:
            raise AgentBusy(f"this agent takes no new jobs: {self.closed_reason}")
        if not self._free:
            raise AgentBusy("all slots of this agent are taken")
        slot = min(self._free)
        job = Job(claims, slot=slot, folder=self._folder / claims.job_id)
        try:
            for board_id, fence in claims.execution.boards.items():
                self._boards.hold(board_id, job.job_id, fence)
            job.folder.mkdir(mode=0o700)
        except BaseException:
            self._owned.start(self._boards.release(job.job_id), name=f"release-{job.job_id}")
            raise
        self._free.discard(slot)
        self._jobs[job.job_id] = job
        self._owned.start(self._live(job), name=f"job-{job.job_id}")
        log.info("job.began", job_id=job.job_id, identity=job.identity, slot=slot)
        return job

    def held(self) -> tuple[HeldJob, ...]:
        """For `hello`: the jobs that live here, and those whose end control doesn't know."""
        live = [
            HeldJob(
                job_id=job.job_id,
                state=job.state,
                attempt=job.attempt,
                boards=job.execution.boards,
            )
            for job in self._jobs.values()
        ]
        over = [HeldJob(job_id=move.job_id, state=move.state) for move in self._unreported.values()]
        return (*live, *over)[:256]

    def report_again(self) -> None:
        """Tell control of every end that it has not heard of."""
        for job_id, moved in list(self._unreported.items()):
            if self._report(moved):
                del self._unreported[job_id]

    def idle(self) -> bool:
        return not self._jobs

    async def close(self, state: JobState, error: AegisError | None) -> None:
        """End every job and wait for the ends, 20 s at most."""
        for job in list(self._jobs.values()):
            job.end(state, error)
        await self._owned.wait(deadline_s=20)
        await self._owned.cancel()

    async def _live(self, job: Job) -> None:
        try:
            state, error = await job.lived(linger_s=self._linger_s)
        finally:
            await self._boards.release(job.job_id)
            self._jobs.pop(job.job_id, None)
            self._free.add(job.slot)
            job.over.set()
        job.state = state
        if job.project_key is not None:
            self._warm.pop(job.project_key, None)
            self._warm[job.project_key] = None
            while len(self._warm) > _WARM_PROJECTS:
                self._warm.pop(next(iter(self._warm)))
        for peer in list(job.peers):
            peer.close(error)
        for task in job.tasks.values():
            if task.spool is not None:
                task.spool.close()
        await asyncio.to_thread(shutil.rmtree, job.folder, True)
        moved = JobMoved(
            job_id=job.job_id,
            state=state,
            error=error.body() if error else None,
            project_key=job.project_key,
        )
        log.info("job.ended", job_id=job.job_id, state=str(state))
        if not self._report(moved):
            self._unreported[job.job_id] = moved
            while len(self._unreported) > 256:
                self._unreported.pop(next(iter(self._unreported)))
