"""All peer connections of the agent: offers come in here, and each ends here."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.control_link import (
    JobOffer,
    JobRejected,
    SessionClosed,
    SignalAnswer,
    SignalCandidate,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentBusy, SessionRevoked
from pydantic import ValidationError

from aegis_agent.grants import Admitted, GrantGate
from aegis_agent.job import Job
from aegis_agent.jobs import JobTable
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.services import Services
from aegis_agent.session import PeerSession

log = structlog.get_logger()

_MOST_SESSIONS: Final = 64
_MOST_PER_JOB: Final = 8


class SessionTable:
    """Admits offers, runs their sessions, and finds them again by job and jti."""

    def __init__(
        self, gate: GrantGate, jobs: JobTable, services: Services, owned: OwnedTasks
    ) -> None:
        self._gate = gate
        self._jobs = jobs
        self._services = services
        self._owned = owned
        self._sessions: dict[tuple[str, str], PeerSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    async def offer(self, offer: JobOffer) -> None:
        """Admit `offer` and serve it, or tell control why not. One at a time."""
        present = self._sessions.get((offer.job_id, offer.jti))
        if present is not None and present.is_for(offer):
            if present.answer is not None:
                self._services.tell_control(present.answer)
            return  # or it is being answered
        try:
            admitted = await uninterrupted(asyncio.to_thread(self._gate.admit, offer))
            if admitted.answer is not None:
                self._services.tell_control(_stored(admitted.answer))
                return
            session = await self._admit(admitted, offer)
        except AegisError as exc:
            self._reject(offer, exc)
            return
        self._sessions[offer.job_id, offer.jti] = session
        self._owned.start(self._run(session, offer), name=f"session-{offer.jti}")

    def candidate(self, frame: SignalCandidate) -> None:
        session = self._sessions.get((frame.job_id, frame.jti))
        if session is not None:
            session.add_candidate(frame)

    def revoke(
        self,
        reason: str,
        *,
        job_id: str | None = None,
        jti: str | None = None,
        identity: str | None = None,
    ) -> None:
        """Close every connection of which all that is given is true."""
        for (job, grant), session in list(self._sessions.items()):
            named = ((job_id, job), (jti, grant), (identity, session.job.identity))
            if all(wanted in (None, has) for wanted, has in named):
                log.info("session.revoked", job_id=job, jti=grant)
                session.close(SessionRevoked(reason or "the permission was taken back"))

    def close_all(self, error: AegisError) -> None:
        for session in list(self._sessions.values()):
            session.close(error)

    async def _admit(self, admitted: Admitted, offer: JobOffer) -> PeerSession:
        if len(self._sessions) >= _MOST_SESSIONS:
            raise AgentBusy("this agent has as many connections as it takes")
        if len(self._of(admitted.claims.job_id)) >= _MOST_PER_JOB:
            raise AgentBusy("this job has as many connections as a job may have")
        job: Job = await self._jobs.admit(admitted.claims)
        session = PeerSession(job, admitted, offer, self._gate, self._services)
        job.attach(session)
        return session

    def _of(self, job_id: str) -> list[PeerSession]:
        return [session for (job, _), session in self._sessions.items() if job == job_id]

    async def _run(self, session: PeerSession, offer: JobOffer) -> None:
        try:
            error = await session.run()
            body = None if error is None else error.body().model_copy(update={"facts": {}})
            closed = SessionClosed(job_id=offer.job_id, jti=offer.jti, error=body)
            self._services.tell_control(closed)
        except AegisError as exc:
            self._reject(offer, exc)
        except Exception:
            self._reject(offer, AegisError("a defect ended the connection"))
            raise
        finally:
            session.job.left(session)
            del self._sessions[offer.job_id, offer.jti]

    def _reject(self, offer: JobOffer, error: AegisError) -> None:
        log.warning(
            "offer.refused",
            job_id=offer.job_id,
            jti=offer.jti,
            code=error.code,
            detail=error.message,
        )
        self._services.tell_control(
            JobRejected(job_id=offer.job_id, jti=offer.jti, error=error.body())
        )


def _stored(answer: str) -> SignalAnswer:
    try:
        return SignalAnswer.model_validate_json(answer)
    except ValidationError as exc:
        raise AegisError("the answer that the ledger keeps is damaged") from exc
