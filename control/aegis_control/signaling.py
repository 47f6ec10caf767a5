"""Passing offers and candidates on to the agent that the grant names."""

from __future__ import annotations

from aegis_protocol.control_link import JobOffer, SignalCandidate
from aegis_protocol.failures.grant import GrantInvalid, GrantRevoked, GrantStale
from aegis_protocol.failures.http import BadRequest, JobOver
from aegis_protocol.failures.link import TooManyCandidates
from aegis_protocol.fingerprint import Fingerprint, check_sdp
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.signaling import IceCandidate, OfferReply, OfferRequest
from aegis_protocol.states import ended

from aegis_control.granting import Granting
from aegis_control.issuer import Issuer
from aegis_control.jobs import Jobs, not_found
from aegis_control.link.orders import Orders
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.store import offers
from aegis_control.store.jobs import LIVE, JobRecord

log = get_logger("signaling")


class Signaling:
    def __init__(
        self,
        issuer: Issuer,
        ledger: Jobs,
        orders: Orders,
        granting: Granting,
        metrics: Metrics,
    ) -> None:
        self._issuer = issuer
        self._ledger = ledger
        self._orders = orders
        self._granting = granting
        self._metrics = metrics

    async def offer(self, job_id: str, token: str, request: OfferRequest) -> OfferReply:
        """
        Check the grant and the SDP as far as control can, and send both to the agent.

        The agent checks all of it again. Raises GrantError's family, JobNotFound, JobOver,
        SdpInvalid, FingerprintAmbiguous, FingerprintMismatch, AgentOffline.
        """
        claims = self._claims(job_id, token)
        check_sdp(request.sdp).expect(Fingerprint.parse(claims.webrtc.peer_fingerprint))
        job = await self._granted(claims)
        async with self._ledger.change() as change:
            await offers.add(change.conn, claims.jti, job.id, claims.aud, now_s=change.now_s)
        await self._orders.send(
            claims.aud,
            JobOffer(
                job_id=job.id,
                jti=claims.jti,
                grant=token,
                sdp=request.sdp,
                ice_servers=self._granting.ice_servers(job, "agent"),
            ),
        )
        self._metrics.offers.inc()
        log.info("offer.passed_on", job_id=job.id, jti=claims.jti, agent_id=claims.aud)
        return OfferReply(job_id=job.id, jti=claims.jti)

    async def candidate_by_grant(self, job_id: str, token: str, candidate: IceCandidate) -> None:
        """Send one candidate of the peer that holds this grant. Raises as `offer` does."""
        claims = self._claims(job_id, token)
        await self._candidate(await self._granted(claims), claims.jti, candidate)

    async def candidate_by_owner(self, job_id: str, identity: str, candidate: IceCandidate) -> None:
        """Send one candidate for the job's newest offer, as its owner."""
        job = _live(await self._ledger.owned(job_id, identity))
        async with self._ledger.change() as change:
            jti = await offers.latest(change.conn, job_id)
        if jti is None:
            raise BadRequest("no offer was sent for this job yet")
        await self._candidate(job, jti, candidate)

    async def _candidate(self, job: JobRecord, jti: str, candidate: IceCandidate) -> None:
        async with self._ledger.change() as change:
            if not await offers.add_candidate(change.conn, jti, job.id, "client"):
                if not await offers.exists(change.conn, jti, job.id, job.agent_id or ""):
                    raise BadRequest("no offer was sent with this grant yet")
                raise TooManyCandidates(
                    f"this offer had its {offers.MAX_CANDIDATES} candidates",
                    limit=offers.MAX_CANDIDATES,
                )
        await self._orders.send(
            job.agent_id or "",
            SignalCandidate(
                job_id=job.id,
                jti=jti,
                candidate=candidate.candidate,
                sdpMid=candidate.sdpMid,
                sdpMLineIndex=candidate.sdpMLineIndex,
            ),
        )

    def _claims(self, job_id: str, token: str) -> GrantClaims:
        claims = self._issuer.verify(token)
        if claims.job_id != job_id:
            raise GrantInvalid("the grant is for another job")
        return claims

    async def _granted(self, claims: GrantClaims) -> JobRecord:
        """The job of a grant that still holds."""
        if await self._ledger.is_revoked(claims):
            raise GrantRevoked("the permission was taken back", jti=claims.jti)
        job = await self._ledger.get(claims.job_id)
        if job.identity != claims.sub:
            raise not_found(job.id)
        _live(job)
        if job.agent_id != claims.aud or job.attempt != claims.attempt:
            raise GrantStale("the job was handed out anew since", attempt=job.attempt)
        return job


def _live(job: JobRecord) -> JobRecord:
    if ended(job.state):
        raise JobOver(f"the job is {job.state}", job_id=job.id, state=str(job.state))
    if job.state not in LIVE:
        raise GrantStale("the job waits for an agent again", state=str(job.state))
    return job
