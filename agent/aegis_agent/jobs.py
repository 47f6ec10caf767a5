"""
The jobs that this agent has: each takes a slot and maybe boards, and outlives its connections.

Ending a job cancels what runs, gives the boards back, frees the slot, tells control and the peers
why; its results stay. How it ended is told again at each `hello`, as control may have missed it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.control_link import HeldJob, JobMoved
from aegis_protocol.errors import AegisError, ErrorBody
from aegis_protocol.failures.agent import AgentBusy
from aegis_protocol.failures.board import BoardGone
from aegis_protocol.failures.grant import GrantInvalid, GrantStale
from aegis_protocol.failures.http import JobCanceled, JobOver
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.grant import GrantClaims
from aegis_protocol.ids import new_id
from aegis_protocol.states import JobState

from aegis_agent.boards import BoardRegistry
from aegis_agent.disk.trees import remove_tree
from aegis_agent.intake import Intake
from aegis_agent.job import Job, Peer
from aegis_agent.owned_tasks import OwnedTasks

__all__ = ["Job", "JobTable", "Peer"]

log = structlog.get_logger()

_WARM_PROJECTS: Final = 256
_HELD_JOBS: Final = 256
"""As many as a `hello` may name."""
_KEPT_ENDS: Final = 128
_KEEP_ENDS_S: Final = 3600.0
_GOODBYE_S: Final = 3.0
_CLOSE_S: Final = 20.0


@dataclass(frozen=True)
class _End:
    moved: JobMoved
    attempt: int
    at_mono: float


class JobTable:
    """
    All jobs of the agent, and the slots that they take.

    folder  emptied when the agent starts: no job outlives its daemon
    report  tells control of a move; False when the link is down
    """

    def __init__(
        self,
        *,
        slots: int,
        folder: Path,
        boards: BoardRegistry,
        intake: Intake,
        linger_s: float,
        report: Callable[[JobMoved], bool],
    ) -> None:
        self._free = set(range(slots))
        self._folder = folder
        self._boards = boards
        self._intake = intake
        self._linger_s = linger_s
        self._report = report
        self._jobs: dict[str, Job] = {}
        self._ends: dict[str, _End] = {}
        self._owned = OwnedTasks()
        self._warm: dict[str, None] = {}
        self.ended: Counter[str] = Counter()
        """How many have ended, by state."""
        self.one_ended = asyncio.Event()
        """Set with each job's end; who waits for it clears it."""
        if folder.exists():
            remove_tree(folder)
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

    def idle(self) -> bool:
        return not self._jobs

    async def admit(self, claims: GrantClaims) -> Job:
        """
        Return the job of `claims`, made and its boards held if it is new.

        Raises AgentBusy (no slot, or no new jobs are taken), JobOver, GrantInvalid (another
        identity's job), GrantStale, DiskFull, and what holding a board raises.
        """
        job = self._jobs.get(claims.job_id)
        if job is not None:
            return self._present(job, claims)
        end = self._ends.get(claims.job_id)
        if end is not None and claims.attempt <= end.attempt:
            raise JobOver("the job is over", job_id=claims.job_id, state=str(end.moved.state))
        if self._intake.reason is not None:
            raise AgentBusy(f"this agent takes no new jobs: {self._intake.reason}")
        if not self._free:
            raise AgentBusy("all slots of this agent are taken")
        return await self._new(claims)

    def void(self, board_id: str, fence: int, *, force: bool) -> None:
        """
        Take a board from whoever holds it under `fence` or a lower number: the job ends, at once or
        after the flash that is being written. Raises DiskFull.
        """
        for job in self._jobs.values():
            if job.boards.get(board_id, fence + 1) > fence:
                continue
            log.info("lease.revoked", job_id=job.job_id, board_id=board_id, force=force)
            error = JobCanceled("the board was taken back from the job", board_id=board_id)
            if force:
                job.end(JobState.CANCELED, error)
            else:
                job.end_after_flash(board_id, JobState.CANCELED, error)
        self._boards.void(board_id, fence)

    def held(self) -> tuple[HeldJob, ...]:
        """For `hello`: the jobs that live here, then those whose end control may have missed."""
        live = [
            HeldJob(
                job_id=job.job_id,
                state=job.state,
                attempt=job.attempt,
                boards=job.boards,
                sessions=tuple(sorted(peer.jti for peer in job.peers)),
            )
            for job in self._jobs.values()
        ]
        over = [
            HeldJob(
                job_id=end.moved.job_id,
                state=end.moved.state,
                attempt=end.attempt,
                error=_in_short(end.moved.error),
            )
            for end in reversed(self._ends.values())
        ]
        return (*live, *over)[:_HELD_JOBS]

    def report_again(self) -> None:
        """Tell control until when each job runs, and how those ended that it may have missed."""
        for job in self._jobs.values():
            if job.state is JobState.RUNNING and not job.ending:
                self._report(running(job))
        long_ago = time.monotonic() - _KEEP_ENDS_S
        for job_id, end in list(self._ends.items()):
            if self._report(end.moved) and end.at_mono < long_ago:
                del self._ends[job_id]

    async def close(self, state: JobState, error: AegisError | None) -> None:
        """End every job and wait for the ends, 20 s at most."""
        for job in list(self._jobs.values()):
            job.end(state, error)
        if not await self._owned.wait(deadline_s=_CLOSE_S):
            log.warning("jobs.not_ended", jobs=[job.job_id for job in self._jobs.values()])
        await self._owned.cancel()

    def _present(self, job: Job, claims: GrantClaims) -> Job:
        if job.identity != claims.sub:
            raise GrantInvalid("the grant's identity is not the job's")
        if claims.attempt < job.attempt:
            raise GrantStale("the job was placed again since", attempt=claims.attempt)
        if claims.attempt > job.attempt:
            job.end(JobState.CANCELED, JobCanceled("the job was placed again"))
            raise AgentBusy("an earlier attempt of this job is just being ended here")
        job.check_open()
        self._hold(job, claims)
        return job

    async def _new(self, claims: GrantClaims) -> Job:
        # Not named by the job's id, which comes from outside and may be `..`.
        job = Job(claims, slot=min(self._free), folder=self._folder / new_id())
        self._free.discard(job.slot)
        try:
            self._hold(job, claims)
            try:
                job.folder.mkdir(mode=0o700)
            except OSError as exc:
                raise DiskFull(f"there is no room for a job: {exc.strerror}") from exc
        except BaseException:
            self._free.add(job.slot)
            await uninterrupted(self._boards.release(job.job_id))
            raise
        self._ends.pop(job.job_id, None)
        self._jobs[job.job_id] = job
        self._owned.start(self._live(job), name=f"job-{job.job_id}")
        log.info("job.began", job_id=job.job_id, identity=job.identity, slot=job.slot)
        return job

    def _hold(self, job: Job, claims: GrantClaims) -> None:
        """Hold the grant's boards; what the job holds already may be unplugged just now."""
        for board_id, fence in claims.execution.boards.items():
            try:
                self._boards.hold(board_id, job.job_id, fence)
            except BoardGone:
                if board_id not in job.boards:
                    raise
            job.boards[board_id] = fence

    async def _live(self, job: Job) -> None:
        try:
            await job.lived(linger_s=self._linger_s)
        finally:
            await uninterrupted(self._buried(job))

    async def _buried(self, job: Job) -> None:
        """Give back what the job had. Whatever fails of it, the slot is free afterwards."""
        state, error = job.ended
        try:
            await self._boards.release(job.job_id)
        finally:
            del self._jobs[job.job_id]
            self._free.add(job.slot)
            self._note_end(job, state, error)
            self.one_ended.set()
            for peer in list(job.peers):
                peer.close(error)
        await job.deserted(deadline_s=_GOODBYE_S)
        for task in job.tasks.values():
            if task.spool is not None:
                task.spool.close()
        await asyncio.to_thread(shutil.rmtree, job.folder, True)

    def _note_end(self, job: Job, state: JobState, error: AegisError | None) -> None:
        if job.project_key is not None:
            self._warm.pop(job.project_key, None)
            self._warm[job.project_key] = None
            while len(self._warm) > _WARM_PROJECTS:
                self._warm.pop(next(iter(self._warm)))
        if state is JobState.PENDING:
            log.info("job.given_back", job_id=job.job_id)
            return
        self.ended[str(state)] += 1
        log.info(
            "job.ended", job_id=job.job_id, state=str(state), code=error.code if error else None
        )
        moved = JobMoved(
            job_id=job.job_id,
            state=state,
            error=error.body() if error else None,
            project_key=job.project_key,
        )
        self._ends[job.job_id] = _End(moved, job.attempt, time.monotonic())
        while len(self._ends) > _KEPT_ENDS:
            self._ends.pop(next(iter(self._ends)))
        self._report(moved)


def _in_short(error: ErrorBody | None) -> ErrorBody | None:
    """`hello` has room for hundreds of these."""
    if error is None:
        return None
    short = {"message": error.message[:200], "remedy": error.remedy[:200], "facts": {}}
    return error.model_copy(update=short)


def running(job: Job) -> JobMoved:
    """What control is told of a job that runs, and of its new end."""
    return JobMoved(job_id=job.job_id, state=JobState.RUNNING, ends_at=job.ends_at)
