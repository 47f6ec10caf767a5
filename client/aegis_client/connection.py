"""
All the way to an agent: certificate, grant, link, greeting; and back, leaving nothing behind.

Three tries, two seconds apart, each with a fresh grant and at most ten seconds. A job that was
made here ends with the session unless the session says to keep it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import structlog
from aegis_links.certificate import Certificate
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import ChannelClosed, LinkClosed, LinkNotOpened, PeerGone
from aegis_protocol.http_api import GrantReply, GrantRequest, PendingReply

from aegis_client.config import TrustMode
from aegis_client.control import ControlClient
from aegis_client.handshake import greet
from aegis_client.placement import granted, requested
from aegis_client.reporter import Reporter
from aegis_client.session import Session, TaskNews
from aegis_client.signals import Signals
from aegis_client.trust import KnownAgents
from aegis_client.wish import Wish

TRIES: Final = 3
BETWEEN_TRIES_S: Final = 2.0
ATTEMPT_S: Final = 10.0
DROP_S: Final = 2.0

_log = structlog.get_logger("aegis_client.connection")


@asynccontextmanager
async def open_session(
    control: ControlClient,
    known: KnownAgents,
    trust: TrustMode,
    wish: Wish,
    reporter: Reporter,
) -> AsyncIterator[Session]:
    """
    A session as `wish` asks for.

    Raises what control refuses, JobTimedOut when no agent was free, what keeps the link from
    opening, AgentKeyChanged and its like; and inside, when the agent is lost, AgentGone or what
    the agent said before it closed.
    """
    certificate = Certificate.generate()
    made_here = wish.job_id is None
    request, reply = await requested(control, wish, str(certificate.fingerprint))
    news = TaskNews(reporter)
    async with Signals.listening(control, reply.job_id) as signals, AsyncExitStack() as stack:
        try:
            session = await _reached(
                stack, control, signals, known, trust, certificate, wish, request, reply, news,
                reporter,
            )  # fmt: skip
        except BaseException:
            if made_here:
                await _drop(control, reply.job_id)
            raise
        session.keep_job = not made_here
        async with _watched(session, signals):
            try:
                yield session
            except (PeerGone, LinkClosed, ChannelClosed) as exc:
                await _last_words(session)
                raise session.lost(exc) from exc
            except asyncio.CancelledError:
                if not await _goodbye(session) and not session.keep_job:
                    await _drop(control, session.job_id)
                raise
            finally:
                await _goodbye(session)


async def _reached(
    stack: AsyncExitStack,
    control: ControlClient,
    signals: Signals,
    known: KnownAgents,
    trust: TrustMode,
    certificate: Certificate,
    wish: Wish,
    request: GrantRequest,
    reply: GrantReply | PendingReply,
    news: TaskNews,
    reporter: Reporter,
) -> Session:
    """Connect, in up to TRIES attempts; what was opened is closed by `stack`."""
    for left in range(TRIES - 1, -1, -1):
        grant = await granted(
            control, signals, request, reply, wait_s=wish.wait_s, reporter=reporter
        )
        try:
            async with AsyncExitStack() as attempt:
                async with _limited(ATTEMPT_S):
                    greeted = await greet(
                        attempt, control, signals, known, trust, certificate, grant,
                        asked=wish.agent, on_notification=news.take,
                    )  # fmt: skip
                    session = Session(greeted, grant, news)
                    await session.open_ports(attempt, wish.needs.channels)
                await stack.enter_async_context(attempt.pop_all())
        except AegisError as exc:
            _log.info("connection.failed", job_id=reply.job_id, code=exc.code, tries_left=left)
            if not exc.retryable or left == 0:
                raise
            reporter.note(f"{exc.message} ({exc.code}); trying again")
        else:
            reporter.connected(greeted.agent.name, greeted.link.path)
            if greeted.first_met:
                reporter.note(f"met agent {greeted.agent.name!r} first: pinned {greeted.agent.id}")
            return session
        await asyncio.sleep(BETWEEN_TRIES_S)
        reply = await control.request_grant(request)
    raise AssertionError("unreachable: the last try returns or raises")


@asynccontextmanager
async def _limited(limit_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as exc:
        raise LinkNotOpened(f"the agent was not reached within {limit_s:.0f} s") from exc


@asynccontextmanager
async def _watched(session: Session, signals: Signals) -> AsyncIterator[None]:
    """Notice the end of the link, and doubt an agent that control has lost."""
    watchers = [
        asyncio.create_task(session.wait_over(), name="link-end"),
        asyncio.create_task(session.doubt(signals), name="doubt"),
    ]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _last_words(session: Session) -> None:
    """Give what the agent said just before the end the time to be taken."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await session.wait_over()


async def _goodbye(session: Session) -> bool:
    """End the job at the agent unless it is kept; tell whether the agent knows."""
    if session.keep_job:
        return True
    if session.over:
        return False
    try:
        await session.end_job()
    except AegisError as exc:
        _log.info("goodbye.failed", job_id=session.job_id, code=exc.code)
        return False
    session.keep_job = True  # ended: there is nothing left to end
    return True


async def _drop(control: ControlClient, job_id: str) -> None:
    """Cancel a job that came to nothing, so that it holds no slot; short, and never raises."""
    try:
        async with asyncio.timeout(DROP_S):
            await control.cancel_job(job_id)
    except (AegisError, TimeoutError) as exc:
        _log.info("job.not_dropped", job_id=job_id, error=str(exc))
