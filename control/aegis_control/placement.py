"""
The loop around the scheduler: it ticks on changes, and carries out what is decided.

Who asks for a new job is served by the tick itself: what came since the last one is made, decided,
assigned and granted in one transaction, so that a grant waits for one commit, and many for the
same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.events import Assigned, State
from aegis_protocol.failures.board import BoardBusy
from aegis_protocol.failures.http import Unavailable
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.states import IllegalMove, JobState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from aegis_control.fleet import FleetMirror
from aegis_control.jobs import Change, Jobs
from aegis_control.key_limits import max_jobs
from aegis_control.keyring import revoked_key
from aegis_control.leasing import Leasing
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.new_job import NewJob
from aegis_control.policy.weighing import AGENT_KINDS
from aegis_control.scheduler import Decision, KnownFleet, Match, WaitingJob, decide
from aegis_control.store import boards, identities, jobs, keys
from aegis_control.store.database import Database
from aegis_control.store.jobs import JobRecord
from aegis_control.store.mirror import Mirror

log = get_logger("placement")

_GATHER_S: Final = 0.003
"""So long after a tick is the next: what arrives in between is decided together."""
_AFTER_TROUBLE_S: Final = 1.0
_SETTLE_S: Final = 5.0
_DOUBT_S: Final = 300.0
"""So long after a key was revoked somebody may wait here who came with one that was good then."""
_STOPPING: Final = "control is stopping"
_MOST_AT_ONCE: Final = 32
"""New jobs in one tick: with SQLite it holds up everything else while it works."""


@dataclass(frozen=True)
class _Asked:
    new: NewJob
    answer: asyncio.Future[JobRecord]

    def refuse(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


@dataclass(frozen=True)
class _Found:
    """A decision, and what it is about. agents: the names by id of those that get a job."""

    decision: Decision
    pending: Mapping[str, JobRecord]
    agents: Mapping[str, str]


class Placement:
    """changed: whoever changes something sets it; `settle` sets it and waits for the tick."""

    def __init__(
        self,
        database: Database,
        fleet: FleetMirror,
        open_jobs: Mirror[JobRecord],
        leasing: Leasing,
        metrics: Metrics,
        changed: asyncio.Event,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._open_jobs = open_jobs
        self._leasing = leasing
        self._metrics = metrics
        self._changed = changed
        self._known = KnownFleet()
        self._quiet_until_s = 0.0
        self._upcoming: asyncio.Future[None] | None = None
        self._asked: list[_Asked] = []
        self._ended = False
        self._doubt_until_s = 0.0
        database.bus.subscribe("keys", lambda _: self._doubt())

    async def settle(self) -> bool:
        """Wait until a tick that began after this call is done; False if it is not in 5 s."""
        if self._upcoming is None:
            self._upcoming = asyncio.get_running_loop().create_future()
        self._changed.set()
        done, _ = await asyncio.wait([self._upcoming], timeout=_SETTLE_S)
        return bool(done)

    async def ask(self, new: NewJob) -> JobRecord:
        """
        Have the next tick make this job, and grant it if it finds an agent; return it as it is.

        Canceled before a tick took it up, it leaves nothing behind.

        Raises what `new` refuses with, DBAPIError, Unavailable.
        """
        if self._ended:
            raise Unavailable(_STOPPING)
        asked = _Asked(new, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._changed.set()
        try:
            return await asked.answer
        except asyncio.CancelledError:
            self._asked = [one for one in self._asked if one is not asked]
            raise

    async def run(self, ledger: Jobs, stopping: asyncio.Event) -> None:
        """Tick until `stopping` is set, and `changed` after it. No transaction is cut off."""
        self._changed.set()
        try:
            while not stopping.is_set():  # it may have been set, and `changed` cleared, in a tick
                await self._changed.wait()
                if stopping.is_set():
                    return
                await asyncio.sleep(self._quiet_until_s - time.monotonic())
                await self._turn(ledger)
        finally:
            self._ended = True
            self._refuse(self._asked, Unavailable(_STOPPING))

    async def _turn(self, ledger: Jobs) -> None:
        self._changed.clear()
        waiters, self._upcoming = self._upcoming, None
        asked: list[_Asked] = []
        try:
            async with self._database.alone("placement"):
                await self._database.in_step()
                asked, self._asked = self._asked[:_MOST_AT_ONCE], self._asked[_MOST_AT_ONCE:]
                if self._asked:
                    self._changed.set()
                with self._metrics.tick_seconds.time():
                    await self._tick(ledger, asked)
        except DBAPIError as exc:
            self._refuse(asked + self._asked, exc)
            log.error("placement.failed", detail=str(exc.orig))  # noqa: TRY400
            await asyncio.sleep(_AFTER_TROUBLE_S)
            self._changed.set()
        finally:
            self._quiet_until_s = time.monotonic() + _GATHER_S
            if waiters is not None and not waiters.done():
                waiters.set_result(None)

    def _refuse(self, asked: Iterable[_Asked], exc: Exception) -> None:
        """Tell these that it can't be; none of them waits any more."""
        for one in asked:
            one.refuse(exc)
        self._asked = [one for one in self._asked if not one.answer.done()]

    async def _tick(self, ledger: Jobs, asked: Sequence[_Asked]) -> None:
        await self._leasing.advance()
        if asked:
            await self._serve(ledger, asked)
            return
        found = await self._decided(())
        if found is None or not (found.decision.matches or _news(found)):
            return
        async with ledger.change() as change:
            await self._carry_out(change, found, {})

    async def _serve(self, ledger: Jobs, asked: Sequence[_Asked]) -> None:
        """
        Make what is asked for, and carry out what is decided, in one transaction.

        Should one of several break it, each is tried by itself.
        """
        try:
            async with ledger.change() as change:
                answers = await self._made(change, asked)
            for one, job in answers:
                if not one.answer.done():
                    one.answer.set_result(job)
        except (OperationalError, InterfaceError):
            raise
        except Exception as exc:  # noqa: BLE001  whoever asked is told
            if len(asked) == 1:
                asked[0].refuse(exc)
                return
            log.warning("placement.tried_one_by_one", asked=len(asked), error=repr(exc))
            for one in asked:
                if not one.answer.done():
                    await self._serve(ledger, [one])

    async def _made(
        self, change: Change, asked: Sequence[_Asked]
    ) -> Sequence[tuple[_Asked, JobRecord]]:
        """Make the jobs and decide; returns each with its job as it stands then."""
        open_jobs = await self._open_jobs.now()
        queue = Counter(j.identity for j in open_jobs.values() if j.state is JobState.PENDING)
        answers: list[tuple[_Asked, JobRecord]] = []
        made: dict[str, NewJob] = {}
        known: dict[str, JobRecord] = {}
        revoked = await self._revoked(change, asked)
        for one in asked:
            if one.answer.done():  # whoever asked has left: there is nobody to tell of a job
                continue
            if one.new.identity in revoked:
                one.refuse(revoked_key(one.new.identity))
                continue
            try:
                job = await one.new.made(change, waiting=queue[one.new.identity])
            except AegisError as exc:
                one.refuse(exc)
                continue
            answers.append((one, job))
            known.setdefault(job.id, job)
            if one.new.is_new:
                made[job.id] = one.new
                queue[job.identity] += 1
        if made:
            who = {new.identity for new in made.values()}
            await identities.note_asked(change.conn, who, now_s=change.now_s)
        change.wakes_placement = False  # what was made is decided on right here
        found = await self._decided([known[job_id] for job_id in made])
        if found is not None:
            known |= await self._carry_out(change, found, made)
        return [(one, known[job.id]) for one, job in answers]

    def _doubt(self) -> None:
        """A key was revoked; who waits here came with one that was good."""
        self._doubt_until_s = time.monotonic() + _DOUBT_S

    async def _revoked(self, change: Change, asked: Sequence[_Asked]) -> Collection[str]:
        """Whose key was revoked since they asked."""
        if time.monotonic() > self._doubt_until_s:
            return ()
        return await keys.revoked_among(change.conn, {one.new.identity for one in asked})

    async def _decided(self, new: Iterable[JobRecord]) -> _Found | None:
        """Decide on all that waits, and on these besides; None when nothing does."""
        open_jobs = await self._open_jobs.now()
        pending = {job.id: job for job in open_jobs.values() if job.state is JobState.PENDING}
        pending |= {job.id: job for job in new}
        if not pending:
            return None
        fleet = await self._fleet.now()
        decision = decide(
            [waiting(job) for job in pending.values()],
            fleet.views(),
            fleet.load(),
            now_s=time.time(),
            known=self._known,
        )
        matched = {match.agent_id for match in decision.matches}
        names = {agent_id: fleet.name_of(agent_id) for agent_id in matched}
        return _Found(decision, pending, names)

    async def _carry_out(
        self, change: Change, found: _Found, made: Mapping[str, NewJob]
    ) -> Mapping[str, JobRecord]:
        """Assign, and grant what was `made`; tell the rest why they wait. Returns what changed."""
        changed: dict[str, JobRecord] = {}
        for match in found.decision.matches:
            job = await self._assigned(
                change, match, found.agents[match.agent_id], found.pending[match.job_id].identity
            )
            if job is None:
                continue
            changed[job.id] = job
            if job.id in made:
                await made[job.id].placed(change, job)
        for job, reasons in _news(found):
            if not await jobs.set_reasons(change.conn, job.id, reasons):
                continue
            changed[job.id] = replace(job, reasons=reasons)
            state = State(job_id=job.id, state=JobState.PENDING, reasons=reasons)
            await change.tell(job.id, state)
            log.info("job.waits", job_id=job.id, why=[str(reason) for reason in reasons])
        return changed

    async def _assigned(
        self, change: Change, match: Match, agent_name: str, identity: str
    ) -> JobRecord | None:
        """Carry out a match; None when something came in between: the next tick looks again."""
        try:
            async with change.conn.begin_nested() if match.boards else nullcontext():
                fences = await boards.hold(
                    change.conn, match.agent_id, match.boards, match.job_id, identity
                )
                job = await change.move(
                    match.job_id,
                    JobState.ASSIGNED,
                    agent_id=match.agent_id,
                    boards=dict(fences),
                    candidates=list(match.candidates),
                    assigned_at=time.time(),
                    reasons=[],
                )
        except (IllegalMove, BoardBusy) as exc:
            log.info("placement.overtaken", job_id=match.job_id, code=exc.code)
            self._changed.set()
            return None
        assigned = Assigned(job_id=match.job_id, agent_id=match.agent_id, agent_name=agent_name)
        await change.tell(match.job_id, assigned)
        return job


def _news(found: _Found) -> list[tuple[JobRecord, tuple[Reason, ...]]]:
    """The jobs that wait for other reasons than they were told, and those."""
    return [
        (found.pending[job_id], reasons)
        for job_id, reasons in found.decision.waiting.items()
        if found.pending[job_id].reasons != reasons
    ]


def waiting(job: JobRecord) -> WaitingJob:
    """What the scheduler needs to know of a pending job."""
    request = job.request
    allowed = job.limits.get("boards")
    return WaitingJob(
        id=job.id,
        identity=job.identity,
        created_at=job.created_at,
        target=request.target,
        toolchain=request.toolchain,
        agent=request.agent_id,
        labels=request.labels,
        boards=request.boards,
        cpu_cores=request.cpu_cores,
        memory_mb=request.memory_mb,
        project_key=request.project_key,
        priority=int((job.limits.get("priority") or ("0",))[0]),
        most_jobs=max_jobs(job.limits),
        among=tuple(tuple(job.limits[kind]) for kind in AGENT_KINDS if kind in job.limits),
        board_limits=None if allowed is None else tuple(allowed),
    )
