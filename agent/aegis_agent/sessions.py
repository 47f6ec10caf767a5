"""All peer connections of the agent: offers come in here, and each ends here."""

from __future__ import annotations

import structlog
from aegis_protocol.control_link import (
    JobOffer,
    JobRejected,
    JobRevoke,
    SignalAnswer,
    SignalCandidate,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentBusy, SessionRevoked
from pydantic import ValidationError

from aegis_agent.grants import GrantGate
from aegis_agent.jobs import JobTable
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.services import Services
from aegis_agent.session import PeerSession

log = structlog.get_logger()

_MOST_SESSIONS = 64


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

    def offer(self, offer: JobOffer) -> None:
        """Admit `offer` and serve it, or tell control why not."""
        try:
            admitted = self._gate.admit(offer)
            if admitted.answer is not None:
                self._services.tell_control(SignalAnswer.model_validate_json(admitted.answer))
                return
            if len(self._sessions) >= _MOST_SESSIONS:
                raise AgentBusy("this agent has as many connections as it takes")
            job = self._jobs.admit(admitted.claims)
        except (AegisError, ValidationError) as exc:
            self._reject(offer, exc)
            return
        session = PeerSession(job, admitted, offer, self._gate, self._services)
        self._sessions[offer.job_id, offer.jti] = session
        self._owned.start(self._run(session, offer), name=f"session-{offer.jti}")

    def candidate(self, frame: SignalCandidate) -> None:
        session = self._sessions.get((frame.job_id, frame.jti))
        if session is not None:
            session.add_candidate(frame)

    def revoke(self, frame: JobRevoke) -> None:
        """Close the job's connections, or the one named."""
        for (job_id, jti), session in list(self._sessions.items()):
            if job_id == frame.job_id and frame.jti in (None, jti):
                log.info("session.revoked", job_id=job_id, jti=jti)
                session.close(SessionRevoked(frame.reason or "the permission was taken back"))

    def close_all(self, error: AegisError) -> None:
        for session in list(self._sessions.values()):
            session.close(error)

    async def _run(self, session: PeerSession, offer: JobOffer) -> None:
        try:
            await session.run()
        except AegisError as exc:
            self._reject(offer, exc)
        finally:
            del self._sessions[offer.job_id, offer.jti]

    def _reject(self, offer: JobOffer, exc: AegisError | ValidationError) -> None:
        error = exc if isinstance(exc, AegisError) else AegisError("a stored answer is damaged")
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
