"""What each frame of control makes the agent do."""

from __future__ import annotations

import structlog
from aegis_protocol.control_link import (
    Drain,
    JobCancel,
    JobOffer,
    JobRevoke,
    LeaseRevoke,
    Pause,
    Resume,
    SignalCandidate,
    ToAgent,
    Welcome,
)
from aegis_protocol.failures.http import JobCanceled
from aegis_protocol.states import JobState

from aegis_agent.intake import Intake, Why
from aegis_agent.jobs import JobTable
from aegis_agent.sessions import SessionTable

log = structlog.get_logger()


class Orders:
    """Carries out what control says, frame by frame, in order."""

    def __init__(self, jobs: JobTable, sessions: SessionTable, intake: Intake) -> None:
        self._jobs = jobs
        self._sessions = sessions
        self._intake = intake

    async def begin(self, welcome: Welcome) -> None:
        """The link is up: end what control knows to be over, and tell what it may have missed."""
        for job_id in welcome.over_jobs:
            self._cancel(job_id, "control says that this job is over")
        self._jobs.report_again()

    async def obey(self, frame: ToAgent) -> None:
        match frame:
            case JobOffer():
                await self._sessions.offer(frame)
            case SignalCandidate():
                self._sessions.candidate(frame)
            case JobCancel():
                self._cancel(frame.job_id, frame.reason or "the job was canceled")
            case JobRevoke():
                self._sessions.revoke(frame)
            case LeaseRevoke():
                self._lease_revoked(frame)
            case Pause():
                self._intake.close(Why.PAUSE, frame.reason or "paused by an operator")
            case Resume():
                self._intake.open(Why.PAUSE, Why.DRAIN)
            case Drain():
                self._intake.close(Why.DRAIN, "draining")
            case _:
                log.info("link.frame_unexpected", frame=frame.type)

    def _cancel(self, job_id: str, reason: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.end(JobState.CANCELED, JobCanceled(reason, job_id=job_id))

    def _lease_revoked(self, frame: LeaseRevoke) -> None:
        for job in self._jobs.jobs:
            if job.boards.get(frame.board_id, frame.fence + 1) > frame.fence:
                continue
            log.info("lease.revoked", job_id=job.job_id, board_id=frame.board_id)
            error = JobCanceled("the board's lease was taken back", board_id=frame.board_id)
            if frame.force:
                job.end(JobState.CANCELED, error)
            else:
                job.end_after_flash(frame.board_id, JobState.CANCELED, error)
