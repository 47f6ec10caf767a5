"""What each frame of control makes the agent do."""

from __future__ import annotations

import asyncio
from typing import assert_never

import structlog
from aegis_links.ice_guide import IceGuide
from aegis_protocol.control_link import (
    Drain,
    JobCancel,
    JobOffer,
    LeaseRevoke,
    Pause,
    Reset,
    Resume,
    Revocations,
    SignalCandidate,
    Standing,
    ToAgent,
    Welcome,
)
from aegis_protocol.failures.http import JobCanceled
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.states import JobState, Order

from aegis_agent.intake import Intake, Why
from aegis_agent.jobs import JobTable
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.quarantine import Quarantine
from aegis_agent.revoking import Revoking
from aegis_agent.sessions import SessionTable

log = structlog.get_logger()


class Orders:
    """Carries out what control says, frame by frame, in order."""

    def __init__(
        self,
        jobs: JobTable,
        sessions: SessionTable,
        revoking: Revoking,
        intake: Intake,
        quarantine: Quarantine,
        guide: IceGuide,
        owned: OwnedTasks,
    ) -> None:
        self._guide = guide
        self._jobs = jobs
        self._sessions = sessions
        self._revoking = revoking
        self._intake = intake
        self._quarantine = quarantine
        self._owned = owned
        self._draining: asyncio.Task[None] | None = None

    async def begin(self, welcome: Welcome) -> None:
        """
        The link is up: end what was revoked or is over meanwhile, and tell what control may have
        missed.
        """
        await self._revoking.carry_out(welcome.revocations, through=welcome.revoked_through)
        self._guide.expect(welcome.ice_urls)
        for job_id in welcome.over_jobs:
            self._cancel(job_id, "control says that this job is over")
        self._stand(welcome.standing)
        self._jobs.report_again()

    async def obey(self, frame: ToAgent) -> None:
        match frame:
            case JobOffer():
                await self._sessions.offer(frame)
            case SignalCandidate():
                self._sessions.candidate(frame)
            case JobCancel():
                self._cancel(frame.job_id, frame.reason or "the job was canceled")
            case Revocations():
                await self._revoking.carry_out(frame.revocations, through=frame.through)
            case LeaseRevoke():
                self._lease_revoked(frame)
            case Pause():
                self._stand(Standing(ordered=Order.PAUSED, reason=frame.reason))
            case Resume():
                self._stand(Standing())
            case Drain():
                standing = Standing(
                    ordered=Order.DRAINING,
                    reason=frame.reason,
                    deadline_secs=frame.deadline_secs,
                )
                self._stand(standing)
            case Reset():
                self._stand(Standing(resets=frame.resets))
            case _:
                log.info("link.frame_unexpected", frame=frame.type)

    def _stand(self, standing: Standing) -> None:
        """Do what stands ordered now, and no more what was ordered before."""
        self._quarantine.reset(standing.resets)
        closing: dict[Why, str] = {}
        match standing.ordered:
            case Order.NONE:
                pass
            case Order.PAUSED:
                closing = {Why.PAUSE: standing.reason or "paused by an operator"}
            case Order.DRAINING:
                closing = {Why.DRAIN: standing.reason or "draining"}
            case Order.QUARANTINED:
                closing = {Why.QUARANTINE: standing.reason or "quarantined by control"}
            case _:
                assert_never(standing.ordered)
        own = self._quarantine.reason
        if own is not None:
            closing[Why.QUARANTINE] = own
        self._intake.ordered(closing)
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if standing.ordered is Order.DRAINING and standing.deadline_secs is not None:
            ending = self._end_all(standing.deadline_secs)
            self._draining = self._owned.start(ending, name="drain-deadline")

    async def _end_all(self, in_s: float) -> None:
        await asyncio.sleep(in_s)
        log.info("agent.drain_ended", jobs=len(self._jobs.jobs))
        for job in self._jobs.jobs:
            error = JobCanceled("the agent is being drained", job_id=job.job_id)
            job.end(JobState.CANCELED, error)

    def _cancel(self, job_id: str, reason: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.end(JobState.CANCELED, JobCanceled(reason, job_id=job_id))

    def _lease_revoked(self, frame: LeaseRevoke) -> None:
        try:
            self._jobs.void(frame.board_id, frame.fence, force=frame.force)
        except DiskFull as exc:
            log.warning("lease.not_kept", board_id=frame.board_id, detail=exc.message)
