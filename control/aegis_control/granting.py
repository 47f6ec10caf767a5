"""From a request for a grant to a job, an agent and a signed grant; or to the reasons to wait."""

from __future__ import annotations

import time
from functools import partial

from aegis_protocol.board import Board, BoardWish
from aegis_protocol.failures.grant import GrantRevoked
from aegis_protocol.failures.http import JobOver
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits
from aegis_protocol.http_api.grants import (
    GrantReply,
    GrantRequest,
    GrantWish,
    IceServer,
    PendingReply,
)
from aegis_protocol.ids import new_id
from aegis_protocol.signing import b64
from aegis_protocol.states import JobState, ended

from aegis_control.config import ControlConfig
from aegis_control.identity import Identity
from aegis_control.issuer import Issuer
from aegis_control.jobs import Change, Jobs, not_found
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.new_job import Granted, NewJob
from aegis_control.placement import Placement
from aegis_control.policy.decision import Decision, Known, Settings, decide
from aegis_control.policy.in_force import PolicyInForce
from aegis_control.presence import Presence
from aegis_control.store import grants, revocations
from aegis_control.store.agents import AgentRecord
from aegis_control.store.audit import Act, record
from aegis_control.store.jobs import JobRecord
from aegis_control.store.mirror import Mirror
from aegis_control.turn import Side, ice_servers

log = get_logger("grants")


class Granting:
    """base_url: the issuer's name in every grant."""

    def __init__(
        self,
        config: ControlConfig,
        agent_records: Mirror[AgentRecord],
        open_jobs: Mirror[JobRecord],
        issuer: Issuer,
        policy: PolicyInForce,
        ledger: Jobs,
        links: Links,
        placement: Placement,
        presence: Presence,
        metrics: Metrics,
        *,
        base_url: str,
    ) -> None:
        self._config = config
        self._agents = agent_records
        self._open_jobs = open_jobs
        self._issuer = issuer
        self._policy = policy
        self._settings = Settings(
            allowed_channels=config.allowed_channels,
            max_bandwidth_kbps=config.max_bandwidth_kbps,
            max_message_rate=config.max_message_rate,
            max_job_secs=config.max_job_secs,
        )
        self._ledger = ledger
        self._links = links
        self._placement = placement
        self._presence = presence
        self._metrics = metrics
        self._base_url = base_url

    async def request(
        self, identity: Identity, request: GrantRequest, *, idempotency_key: str | None
    ) -> GrantReply | PendingReply:
        """
        Grant what is asked for, or say why the job waits.

        idempotency_key  a repeat under the same key means the same job

        Raises what the decision refuses with, JobNotFound, JobOver, IdempotencyConflict,
        RateLimited.
        """
        if request.job_id is not None:
            given = _still(await self._ledger.owned(request.job_id, identity.id))
            decision = await self._decided(identity, request, job=given)
            return await self._anew(identity, request, given, decision)
        decision = await self._decided(identity, request)
        new = NewJob(
            identity,
            request,
            decision,
            key=idempotency_key,
            most_waiting=self._config.max_waiting_jobs,
            grant=partial(self._granted, identity, request, decision),
        )
        job = await self._placement.ask(new)
        self._presence.seen(job.id)
        if new.is_new:
            log.info("job.created", job_id=job.id, identity=identity.id, target=request.target)
        if new.granted is not None:
            return self._reply(new.granted, job, decision)
        if new.is_new and job.state is JobState.PENDING:
            return PendingReply(job_id=job.id, state=JobState.PENDING, reasons=job.reasons)
        return await self._anew(identity, request, _still(job), decision)

    async def decide(
        self, identity: Identity, wish: GrantWish, *, job: JobRecord | None = None
    ) -> Decision:
        """
        Decide about a grant without making one.

        job  the one that it would be for: what it was made for counts, and what it has
        """
        if job is not None:
            wish = _wish_of(wish, job)
        fleet = await self._agents.now()
        placed = None if job is None or job.agent_id is None else fleet.get(job.agent_id)
        known = Known(fleet.values(), placed=placed)
        return decide(identity, self._policy.policy, self._settings, wish, known)

    def ice_servers(self, job: JobRecord, side: Side) -> tuple[IceServer, ...]:
        """The ICE servers of one side of a job."""
        ends_at_s = max(job.ends_at or 0.0, time.time() + job.request.timeout_secs)
        return ice_servers(
            stun_urls=self._config.stun_urls,
            turn_urls=self._config.turn_urls,
            turn_secrets=self._config.turn_secrets,
            job_id=job.id,
            side=side,
            ends_at_s=ends_at_s,
        )

    async def _seen(self, job_id: str) -> JobRecord:
        """A job that is the caller's own: from memory while it is open."""
        return (await self._open_jobs.now()).get(job_id) or await self._ledger.get(job_id)

    async def _decided(
        self, identity: Identity, request: GrantRequest, *, job: JobRecord | None = None
    ) -> Decision:
        """The decision, if it permits; what refuses is raised, and audited."""
        decision = await self.decide(identity, request, job=job)
        if decision.error is not None:
            async with self._ledger.change() as change:
                await record(change.conn, _denied(request, decision), now_s=change.now_s)
            raise decision.error
        return decision

    async def _anew(
        self, identity: Identity, request: GrantRequest, job: JobRecord, decision: Decision
    ) -> GrantReply | PendingReply:
        """A grant for a job that was there before, or why it waits."""
        self._presence.seen(job.id)
        job = await self._seen(job.id)
        if job.state is JobState.PENDING and request.job_id is not None:
            await self._placement.settle()
            job = await self._seen(job.id)
        _still(job)
        if job.state is JobState.PENDING or job.agent_id is None:
            return PendingReply(job_id=job.id, state=JobState.PENDING, reasons=job.reasons)
        async with self._ledger.change() as change:
            if await revocations.is_job_revoked(change.conn, job.id):
                raise GrantRevoked("the permission for this job was taken back", job_id=job.id)
            granted = await self._granted(identity, request, decision, change, job)
        if granted is None:
            raise not_found(job.id)
        return self._reply(granted, job, decision)

    async def _granted(
        self,
        identity: Identity,
        request: GrantRequest,
        decision: Decision,
        change: Change,
        job: JobRecord,
    ) -> Granted | None:
        """Keep a new grant for a job that has an agent; None when the agent is no more."""
        agent = (await self._agents.now()).get(job.agent_id or "")
        if agent is None:
            return None
        claims = self._claims(identity, request, job, decision, agent.id)
        grants.add(change.conn, claims)
        await record(change.conn, _issued(claims, decision), now_s=claims.iat)
        return Granted(claims, agent)

    def _reply(self, granted: Granted, job: JobRecord, decision: Decision) -> GrantReply:
        """The grant, signed, and what its holder needs besides."""
        if job.state not in (JobState.ASSIGNED, JobState.RUNNING, JobState.LOST):
            raise JobOver(f"the job {job.id} is {job.state}", job_id=job.id, state=str(job.state))
        claims, agent = granted.claims, granted.agent
        self._metrics.grants.inc()
        log.info(
            "grant.issued",
            identity=claims.sub,
            job_id=job.id,
            jti=claims.jti,
            agent_id=agent.id,
            channels=list(decision.channels),
            actions=[str(action) for action in decision.actions],
            rule=decision.rule,
        )
        return GrantReply(
            job_id=job.id,
            state=job.state,
            grant=self._issuer.sign(claims),
            grant_expires_at=claims.exp,
            agent_id=agent.id,
            agent_name=agent.name,
            agent_key=b64(agent.public_key),
            candidates=job.candidates,
            allowed_channels=decision.channels,
            max_bandwidth_kbps=decision.limits.max_bandwidth_kbps,
            max_message_rate=decision.limits.max_message_rate,
            actions=decision.actions,
            boards=self._boards(job, agent),
            ice_servers=self.ice_servers(job, "client"),
        )

    def _claims(
        self,
        identity: Identity,
        request: GrantRequest,
        job: JobRecord,
        decision: Decision,
        agent_id: str,
    ) -> GrantClaims:
        now_s = time.time()
        return GrantClaims(
            iss=self._base_url,
            sub=identity.id,
            aud=agent_id,
            jti=new_id(),
            iat=now_s,
            nbf=now_s,
            exp=now_s + self._config.grant_secs,
            job_id=job.id,
            attempt=job.attempt,
            actions=decision.actions,
            webrtc=WebRtcLimits(
                allowed_channels=decision.channels,
                max_bandwidth_kbps=decision.limits.max_bandwidth_kbps,
                max_message_rate=decision.limits.max_message_rate,
                peer_fingerprint=request.peer_fingerprint,
            ),
            execution=Execution(
                target=job.request.target,
                cpu_cores=job.request.cpu_cores,
                memory_mb=job.request.memory_mb,
                timeout_secs=job.request.timeout_secs,
                boards=dict(job.boards),
            ),
        )

    def _boards(self, job: JobRecord, agent: AgentRecord) -> tuple[Board, ...]:
        link = self._links.find(agent.id)
        known = link.boards if link is not None else agent.hello.boards if agent.hello else ()
        by_id = {board.id: board for board in known}
        return tuple(by_id.get(board_id, Board(id=board_id)) for board_id in job.boards)


def _still(job: JobRecord) -> JobRecord:
    """`job`, unless it is over. JobOver."""
    if ended(job.state):
        raise JobOver(f"the job {job.id} is {job.state}", job_id=job.id, state=str(job.state))
    return job


def _wish_of(wish: GrantWish, job: JobRecord) -> GrantWish:
    """What `wish` comes to for a job that was made earlier: the job's own, on this connection."""
    boards = tuple(BoardWish(id=board_id) for board_id in job.boards) or job.request.boards
    return job.request.model_copy(
        update={
            "required_channels": wish.required_channels,
            "actions": wish.actions,
            "boards": boards,
        }
    )


def _issued(claims: GrantClaims, decision: Decision) -> Act:
    return Act(
        what="grant.issued",
        decision="allowed",
        rule=decision.rule,
        job_id=claims.job_id,
        agent_id=claims.aud,
        board_id=next(iter(claims.execution.boards), None),
        facts={
            "jti": claims.jti,
            "channels": list(decision.channels),
            "actions": [str(action) for action in decision.actions],
            "target": claims.execution.target,
            "boards": sorted(claims.execution.boards),
            "expires_at": claims.exp,
        },
    )


def _denied(request: GrantRequest, decision: Decision) -> Act:
    boards = [wish.id for wish in request.boards if wish.id is not None]
    return Act(
        what="grant.denied",
        decision="denied",
        rule=decision.rule,
        job_id=request.job_id,
        board_id=boards[0] if len(boards) == 1 else None,
        outcome=None if decision.error is None else decision.error.code,
        facts={
            "reasons": [f"{why.rule}: {why.error.message}" for why in decision.reasons],
            "channels": list(request.required_channels),
            "target": request.target,
            "agent": request.agent_id,
            "boards": boards,
        },
    )
