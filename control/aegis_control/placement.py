"""The loop around the scheduler: it ticks on changes, and carries out what is decided."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from aegis_protocol.events import Assigned, State
from aegis_protocol.failures.board import BoardBusy
from aegis_protocol.http_api import Reason
from aegis_protocol.states import IllegalMove, JobState
from sqlalchemy.exc import DBAPIError

from aegis_control.fleet import FleetMirror
from aegis_control.jobs import Jobs
from aegis_control.key_limits import max_jobs
from aegis_control.leasing import Leasing
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.policy.weighing import AGENT_KINDS
from aegis_control.scheduler import KnownCapability, Match, WaitingJob, decide
from aegis_control.store import boards, jobs
from aegis_control.store.database import Database
from aegis_control.store.jobs import JobRecord
from aegis_control.store.mirror import Mirror

log = get_logger("placement")

_GATHER_S: Final = 0.003
"""So long after a tick is the next: what arrives in between is decided together."""
_AFTER_TROUBLE_S: Final = 1.0
_SETTLE_S: Final = 5.0


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
        self._known = KnownCapability()
        self._quiet_until_s = 0.0
        self._upcoming: asyncio.Future[None] | None = None

    async def settle(self) -> bool:
        """Wait until a tick that began after this call is done; False if it is not in 5 s."""
        if self._upcoming is None:
            self._upcoming = asyncio.get_running_loop().create_future()
        self._changed.set()
        done, _ = await asyncio.wait([self._upcoming], timeout=_SETTLE_S)
        return bool(done)

    async def run(self, ledger: Jobs, stopping: asyncio.Event) -> None:
        """Tick until `stopping` is set, and `changed` after it. No transaction is cut off."""
        self._changed.set()
        while not stopping.is_set():  # it may have been set, and `changed` cleared, in a tick
            await self._changed.wait()
            if stopping.is_set():
                return
            await asyncio.sleep(self._quiet_until_s - time.monotonic())
            self._changed.clear()
            waiters, self._upcoming = self._upcoming, None
            try:
                async with self._database.alone("placement"):
                    await self._database.in_step()
                    with self._metrics.tick_seconds.time():
                        await self._tick(ledger)
            except DBAPIError as exc:
                log.error("placement.failed", detail=str(exc.orig))  # noqa: TRY400
                await asyncio.sleep(_AFTER_TROUBLE_S)
                self._changed.set()
            finally:
                self._quiet_until_s = time.monotonic() + _GATHER_S
                if waiters is not None and not waiters.done():
                    waiters.set_result(None)

    async def _tick(self, ledger: Jobs) -> None:
        await self._leasing.advance()
        open_jobs = await self._open_jobs.now()
        pending = tuple(job for job in open_jobs.values() if job.state is JobState.PENDING)
        if not pending:
            return
        fleet = await self._fleet.now()
        queue = [waiting(job) for job in pending]
        decision = decide(queue, fleet.views(), fleet.load(), now_s=time.time(), known=self._known)
        names = {record.id: record.name for record in fleet.records}
        identities = {job.id: job.identity for job in pending}
        for match in decision.matches:
            await self._assign(ledger, match, names[match.agent_id], identities[match.job_id])
        await self._explain(ledger, pending, decision.waiting)

    async def _assign(self, ledger: Jobs, match: Match, agent_name: str, identity: str) -> None:
        try:
            async with ledger.change() as change:
                fences = await boards.hold(
                    change.conn, match.agent_id, match.boards, match.job_id, identity
                )
                await change.move(
                    match.job_id,
                    JobState.ASSIGNED,
                    agent_id=match.agent_id,
                    boards=dict(fences),
                    candidates=list(match.candidates),
                    assigned_at=time.time(),
                    reasons=[],
                )
                assigned = Assigned(
                    job_id=match.job_id, agent_id=match.agent_id, agent_name=agent_name
                )
                await change.tell(match.job_id, assigned)
        except (IllegalMove, BoardBusy) as exc:
            log.info("placement.overtaken", job_id=match.job_id, code=exc.code)
            self._changed.set()

    async def _explain(
        self,
        ledger: Jobs,
        pending: tuple[JobRecord, ...],
        why: Mapping[str, tuple[Reason, ...]],
    ) -> None:
        news = [job for job in pending if job.id in why and why[job.id] != job.reasons]
        if not news:
            return
        async with ledger.change() as change:
            for job in news:
                reasons = why[job.id]
                if not await jobs.set_reasons(change.conn, job.id, reasons):
                    continue
                state = State(job_id=job.id, state=JobState.PENDING, reasons=reasons)
                await change.tell(job.id, state)
                log.info("job.waits", job_id=job.id, why=[str(reason) for reason in reasons])


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
