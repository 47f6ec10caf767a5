"""
The way to the agent of one job, as often as it has to be gone.

Three tries, two seconds apart, each with a fresh grant and at most ten seconds. The first
connection may wait for a free agent; a later one goes back to the agent that has the job, and
gives up soon where control has lost that agent too.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import JobOver
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply

from aegis_client.config import TrustMode
from aegis_client.connection import Connection
from aegis_client.control import ControlClient
from aegis_client.handshake import greet
from aegis_client.hops import Attempt, Hop
from aegis_client.placement import granted
from aegis_client.reporter import Reporter
from aegis_client.signals import Signals
from aegis_client.task_news import TaskNews
from aegis_client.trust import AgentIdentity, KnownAgents
from aegis_client.wish import Wish

TRIES: Final = 3
BETWEEN_TRIES_S: Final = 2.0
ATTEMPT_S: Final = 10.0
GONE_S: Final = 8.0
"""How long an agent that left control is waited for: its process died, or does not answer us."""
FROZEN_S: Final = 30.0
"""The same for one that was silent to us first: its machine or its network stands still."""

_log = structlog.get_logger("aegis_client.connector")


class Connector:
    """
    Makes the connections of one job.

    request  how to ask for one more grant of the job
    reply    control's answer to the first request, which was for `certificate`
    """

    def __init__(
        self,
        control: ControlClient,
        known: KnownAgents,
        trust: TrustMode,
        guide: IceGuide,
        wish: Wish,
        reporter: Reporter,
        signals: Signals,
        news: TaskNews,
        certificate: Certificate,
        request: GrantRequest,
        reply: GrantReply | PendingReply,
    ) -> None:
        self._control, self._known, self._trust = control, known, trust
        self._guide = guide
        self._wish, self._reporter = wish, reporter
        self._signals, self._news = signals, news
        self._certificate, self._request = certificate, request
        self._reply: GrantReply | PendingReply | None = reply
        self._agent: AgentIdentity | None = None
        """Who has the job, once it was met."""

    async def connect(self, stack: AsyncExitStack) -> Connection:
        """
        Return a connection, which `stack` closes.

        Raises what control refuses, JobTimedOut when no agent was free, AgentKeyChanged and its
        like, AgentGone for an agent that left, and what kept the last try from its end; each with
        the fact `hop` where it came from one of the hops.
        """
        began = asyncio.get_running_loop().time()
        if self._agent is not None:
            self._renew()
        for left in range(TRIES - 1, -1, -1):
            grant = None
            if self._agent is None:
                # Whoever waits here in vain has waited as long as was asked for: no second try.
                grant = await self._first_grant()
            else:
                await self._agent_back(began)
            try:
                return await self._try(stack, grant)
            except JobOver as exc:
                raise self._why_over(exc) from exc
            except AegisError as exc:
                hop = exc.facts.get("hop")
                _log.info("connection.failed", code=exc.code, hop=hop, tries_left=left)
                if not exc.retryable or left == 0:
                    raise
                self._guide.forget()  # what it knew of the servers may be what was wrong
                self._reporter.note(f"{exc.message} ({exc.code}); trying again")
            await asyncio.sleep(BETWEEN_TRIES_S)
        raise AssertionError("unreachable: the last try returns or raises")

    def _renew(self) -> None:
        """What belonged to the connection that was lost may have been lost with it."""
        self._certificate = Certificate.generate()
        fingerprint = str(self._certificate.fingerprint)
        self._request = self._request.model_copy(update={"peer_fingerprint": fingerprint})
        if self._signals.closed is None:
            self._signals.reopen()

    async def _try(self, stack: AsyncExitStack, first: GrantReply | None) -> Connection:
        attempt = Attempt(ATTEMPT_S)
        grant = first or await self._grant_again(attempt)
        async with AsyncExitStack() as opened:
            async with attempt.limited():
                greeted = await greet(
                    opened, self._control, self._signals, self._known, self._trust,
                    self._certificate, grant,
                    guide=self._guide, asked=self._wish.agent,
                    on_notification=self._news.take, attempt=attempt,
                )  # fmt: skip
                connection = Connection(greeted, grant)
                await connection.open_ports(opened, self._wish.needs.channels)
            await stack.enter_async_context(opened.pop_all())
        self._agent = greeted.agent
        self._reporter.connected(greeted.agent.name, greeted.link.path)
        if greeted.first_met:
            name = greeted.agent.name
            self._reporter.note(f"met agent {name!r} first: pinned {greeted.agent.id}")
        return connection

    async def _first_grant(self) -> GrantReply:
        reply, self._reply = self._reply, None
        if reply is None:
            attempt = Attempt(ATTEMPT_S)
            async with attempt.limited():
                reply = await self._control.request_grant(self._request)
        return await granted(
            self._control, self._signals, self._request, reply,
            wait_s=self._wish.wait_s, reporter=self._reporter,
        )  # fmt: skip

    async def _grant_again(self, attempt: Attempt) -> GrantReply:
        async with attempt.limited():
            reply = await self._control.request_grant(self._request)
        if isinstance(reply, PendingReply) or reply.agent_id != self._met.id:
            raise self._gone("the job was taken from it", placed_again=True)
        return reply

    async def _agent_back(self, lost_at: float) -> None:
        """
        Return at once unless control has lost the agent; then when it is back, or raise.

        lost_at  when the link to it was, by the loop's clock
        """
        signals = self._signals
        if signals.closed is None:
            return
        patience_s = GONE_S if signals.closed_at <= lost_at else FROZEN_S
        try:
            async with asyncio.timeout_at(signals.closed_at + patience_s):
                await signals.until(lambda: signals.closed is None or signals.over() or None)
        except TimeoutError as exc:
            why = signals.closed.message if signals.closed else "it did not come back"
            raise self._gone(why) from exc
        over = signals.over()
        if over is not None:
            raise over

    def _why_over(self, refused: JobOver) -> AegisError:
        """A job that ended while we were cut off did so for a reason that control has told."""
        if self._agent is None:
            return refused
        return self._signals.over() or refused

    @property
    def _met(self) -> AgentIdentity:
        if self._agent is None:
            raise RuntimeError("no agent was met yet")
        return self._agent

    def _gone(self, why: str, **facts: Any) -> AgentGone:
        agent = self._met
        return AgentGone(
            f"agent {agent.name!r} is gone: {why}",
            agent_id=agent.id,
            agent=agent.name,
            job_id=self._request.job_id,
            hop=str(Hop.AGENT),
            **facts,
        )
