"""From a request for a grant to a job, an agent and a signed grant; or to the reasons to wait."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Final

from aegis_protocol.actions import Action
from aegis_protocol.board import Board
from aegis_protocol.failures.http import (
    AgentNotFound,
    BadRequest,
    IdempotencyConflict,
    JobOver,
    RateLimited,
)
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits
from aegis_protocol.http_api import GrantReply, GrantRequest, IceServer, PendingReply
from aegis_protocol.ids import new_id
from aegis_protocol.signing import b64
from aegis_protocol.states import JobState, ended

from aegis_control.config import ControlConfig
from aegis_control.identity import Identity, granted_actions
from aegis_control.issuer import Issuer
from aegis_control.jobs import Jobs, not_found
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.placement import Placement
from aegis_control.presence import Presence
from aegis_control.store import idempotency, identities, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.jobs import JobRecord
from aegis_control.store.mirror import Mirror
from aegis_control.targets import check_target, check_version_wish
from aegis_control.turn import Side, ice_servers

log = get_logger("grants")

_RETRY_S: Final = 5


class Granting:
    """base_url: the issuer's name in every grant."""

    def __init__(
        self,
        config: ControlConfig,
        agent_records: Mirror[AgentRecord],
        open_jobs: Mirror[JobRecord],
        issuer: Issuer,
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

        Raises ChannelNotAllowed, RoleInsufficient, TargetNotAllowed, BoardNotAllowed,
        TargetUnknown, AgentNotFound, JobNotFound, JobOver, IdempotencyConflict, RateLimited.
        """
        actions = granted_actions(identity, request, self._config.allowed_channels)
        if request.job_id is None:
            job_id = await self._job(identity, request, idempotency_key)
        else:
            job_id = (await self._ledger.owned(request.job_id, identity.id)).id
        self._presence.seen(job_id)
        job = await self._seen(job_id)
        if job.state is JobState.PENDING:
            await self._placement.settle()
            job = await self._seen(job_id)
        if ended(job.state):
            raise JobOver(f"the job {job.id} is {job.state}", job_id=job.id, state=str(job.state))
        if job.state is JobState.PENDING or job.agent_id is None:
            return PendingReply(job_id=job.id, state=JobState.PENDING, reasons=job.reasons)
        return await self._grant(identity, request, job, actions)

    def ice_servers(self, job: JobRecord, side: Side) -> tuple[IceServer, ...]:
        """The ICE servers of one side of a job."""
        secret = self._config.turn_secret
        ends_at_s = max(job.ends_at or 0.0, time.time() + job.request.timeout_secs)
        return ice_servers(
            stun_urls=self._config.stun_urls,
            turn_urls=self._config.turn_urls,
            turn_secret=None if secret is None else secret.get_secret_value(),
            job_id=job.id,
            side=side,
            ends_at_s=ends_at_s,
        )

    async def _seen(self, job_id: str) -> JobRecord:
        """A job that is the caller's own: from memory while it is open."""
        return (await self._open_jobs.now()).get(job_id) or await self._ledger.get(job_id)

    async def _job(self, identity: Identity, request: GrantRequest, key: str | None) -> str:
        """Make a pending job, or find the one that this key stands for."""
        check_version_wish(request)
        if request.timeout_secs > self._config.max_job_secs:
            raise BadRequest(
                f"timeout_secs: at most {self._config.max_job_secs}", field="timeout_secs"
            )
        digest = sha256(request.model_dump_json().encode()).digest()
        async with self._ledger.change() as change:
            await identities.take_turn(change.conn, identity.id, now_s=change.now_s)
            if key is not None:
                repeat = await idempotency.find(change.conn, identity.id, key, now_s=change.now_s)
                if repeat is not None and repeat.body_digest != digest:
                    raise IdempotencyConflict("this Idempotency-Key came with another body")
                if repeat is not None and await jobs.get(change.conn, repeat.job_id) is not None:
                    return repeat.job_id
            fleet = (await self._agents.now()).values()
            if request.target is not None:
                check_target(request.target, fleet)
            if request.agent_id is not None and not any(
                request.agent_id in (agent.id, agent.name) for agent in fleet
            ):
                raise AgentNotFound(
                    f"there is no agent {request.agent_id}", agent_id=request.agent_id
                )
            waiting = await jobs.count_waiting(change.conn, identity.id)
            if waiting >= self._config.max_waiting_jobs:
                raise RateLimited(
                    f"{waiting} jobs of yours are waiting already",
                    retry_after_s=_RETRY_S,
                    waiting=waiting,
                )
            job_id = new_id()
            await jobs.create(
                change.conn, job_id, identity.id, request, identity.limits, now_s=change.now_s
            )
            if key is not None:
                await idempotency.keep(
                    change.conn, identity.id, key, digest, job_id, now_s=change.now_s
                )
            change.wakes_placement = True
        log.info("job.created", job_id=job_id, identity=identity.id, target=request.target)
        return job_id

    async def _grant(
        self,
        identity: Identity,
        request: GrantRequest,
        job: JobRecord,
        actions: tuple[Action, ...],
    ) -> GrantReply:
        if job.state not in (JobState.ASSIGNED, JobState.RUNNING, JobState.LOST):
            raise JobOver(f"the job {job.id} is {job.state}", job_id=job.id, state=str(job.state))
        agent = (await self._agents.now()).get(job.agent_id or "")
        if agent is None:
            raise not_found(job.id)
        now_s = time.time()
        claims = GrantClaims(
            iss=self._base_url,
            sub=identity.id,
            aud=agent.id,
            jti=new_id(),
            iat=now_s,
            nbf=now_s,
            exp=now_s + self._config.grant_secs,
            job_id=job.id,
            attempt=job.attempt,
            actions=actions,
            webrtc=WebRtcLimits(
                allowed_channels=request.required_channels,
                max_bandwidth_kbps=self._config.max_bandwidth_kbps,
                max_message_rate=self._config.max_message_rate,
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
        self._metrics.grants.inc()
        log.info(
            "grant.issued",
            identity=identity.id,
            job_id=job.id,
            jti=claims.jti,
            agent_id=agent.id,
            channels=list(request.required_channels),
            actions=[str(action) for action in actions],
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
            allowed_channels=request.required_channels,
            actions=actions,
            boards=self._boards(job, agent),
            ice_servers=self.ice_servers(job, "client"),
        )

    def _boards(self, job: JobRecord, agent: AgentRecord) -> tuple[Board, ...]:
        link = self._links.find(agent.id)
        known = link.boards if link is not None else agent.hello.boards if agent.hello else ()
        by_id = {board.id: board for board in known}
        return tuple(by_id.get(board_id, Board(id=board_id)) for board_id in job.boards)
