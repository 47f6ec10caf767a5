"""A request for a new job as a tick of the scheduler carries it out: made, and granted at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aegis_protocol.failures.http import IdempotencyConflict, RateLimited
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.ids import new_id

from aegis_control.acting import acting, actor
from aegis_control.identity import Identity
from aegis_control.jobs import Change
from aegis_control.policy.decision import Decision
from aegis_control.store import idempotency, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.jobs import JobRecord

_RETRY_S: Final = 5


@dataclass(frozen=True)
class Granted:
    """What a grant says, and the agent that it is for."""

    claims: GrantClaims
    agent: AgentRecord


Grant = Callable[[Change, JobRecord], Awaitable[Granted | None]]
"""Makes a grant for a job that has its agent; None when the agent is no more."""


class NewJob:
    """
    key           its Idempotency-Key: a repeat means the job that is there already
    most_waiting  so many of the identity's jobs may wait

    What is done is done on behalf of whoever makes this object. Afterwards `is_new` tells whether a
    job was made, and `granted` what was granted for it.
    """

    def __init__(
        self,
        identity: Identity,
        request: GrantRequest,
        decision: Decision,
        *,
        key: str | None,
        most_waiting: int,
        grant: Grant,
    ) -> None:
        self.identity: Final = identity.id
        self.is_new = False
        self.granted: Granted | None = None
        self._request = request
        self._limits = decision.limits.placement
        self._key = key
        self._most_waiting = most_waiting
        self._grant = grant
        self._actor = actor()

    async def made(self, change: Change, *, waiting: int) -> JobRecord:
        """
        Make the pending job, or find the one that the key stands for.

        waiting  how many jobs of the identity wait already

        Raises IdempotencyConflict, RateLimited: nothing was written then.
        """
        self.is_new, self.granted = False, None  # a transaction may have been rolled back
        digest = b"" if self._key is None else self._digest()
        if self._key is not None:
            repeat = await idempotency.find(
                change.conn, self.identity, self._key, now_s=change.now_s
            )
            if repeat is not None and repeat.body_digest != digest:
                raise IdempotencyConflict("this Idempotency-Key came with another body")
            known = None if repeat is None else await jobs.get(change.conn, repeat.job_id)
            if known is not None:
                return known
        if waiting >= self._most_waiting:
            raise RateLimited(
                f"{waiting} jobs of yours are waiting already",
                retry_after_s=_RETRY_S,
                waiting=waiting,
            )
        with acting(self._actor.who, self._actor.source):
            job = await change.create(new_id(), self.identity, self._request, self._limits)
        if self._key is not None:
            await idempotency.keep(
                change.conn, self.identity, self._key, digest, job.id, now_s=change.now_s
            )
        self.is_new = True
        return job

    async def placed(self, change: Change, job: JobRecord) -> None:
        """The job that was made has its agent: grant it."""
        with acting(self._actor.who, self._actor.source):
            self.granted = await self._grant(change, job)

    def _digest(self) -> bytes:
        return sha256(self._request.model_dump_json().encode()).digest()
