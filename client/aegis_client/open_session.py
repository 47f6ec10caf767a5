"""A session from its first request to its last word; it leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_protocol.errors import AegisError

from aegis_client.config import TrustMode
from aegis_client.connection import LOST
from aegis_client.connector import Connector
from aegis_client.control import ControlClient
from aegis_client.lasting_link import LastingLink
from aegis_client.placement import requested
from aegis_client.reporter import Reporter
from aegis_client.session import Session
from aegis_client.signals import Signals
from aegis_client.task_news import TaskNews
from aegis_client.trust import KnownAgents
from aegis_client.wish import Wish

DROP_S: Final = 2.0

_log = structlog.get_logger("aegis_client.open_session")


@asynccontextmanager
async def open_session(
    control: ControlClient,
    known: KnownAgents,
    trust: TrustMode,
    guide: IceGuide,
    wish: Wish,
    reporter: Reporter,
) -> AsyncIterator[Session]:
    """
    A session as `wish` asks for, connected. A job that was made here ends with the session unless
    the session says to keep it, or its agent was lost: that one can be attached to.

    Raises what `Connector.connect` raises; and inside, when the connection is lost for good, why.
    """
    certificate = Certificate.generate()
    made_here = wish.job_id is None
    request, reply = await requested(control, wish, str(certificate.fingerprint))
    job_id, news = reply.job_id, TaskNews(reporter)
    async with Signals.listening(control, job_id) as signals:
        connector = Connector(
            control, known, trust, guide, wish, reporter, signals, news, certificate, request,
            reply,
        )  # fmt: skip
        link = LastingLink(job_id, connector, signals, news, reporter)
        keeping = asyncio.create_task(link.keep(), name=f"session-{job_id}")
        try:
            try:
                await link.connection()
            except BaseException:
                if made_here:
                    await _drop(control, job_id)
                raise
            session = Session(link, news)
            session.keep_job = not made_here
            async with _farewell(session, control):
                yield session
            if session.connected:
                link.leave()
            else:
                keeping.cancel()
        except BaseException:
            keeping.cancel()  # whoever leaves in haste does not wait for the peer
            raise
        finally:
            await asyncio.wait([keeping])
            _raise_a_defect(keeping)


@asynccontextmanager
async def _farewell(session: Session, control: ControlClient) -> AsyncIterator[None]:
    """End the job with the body, unless it is kept."""
    try:
        yield
    except LOST as exc:
        raise session.failure or exc from exc
    finally:
        # A job whose agent was lost for good may go on there, and can be attached to; not so one
        # that was placed again meanwhile: nothing of ours runs there.
        failure = session.failure
        goes_on = failure is not None and "placed_again" not in failure.facts
        if not await _goodbye(session) and not goes_on:
            await _drop(control, session.job_id)


async def _goodbye(session: Session) -> bool:
    """End the job at the agent unless it is kept; tell whether the agent knows."""
    if session.keep_job:
        return True
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


def _raise_a_defect(keeping: asyncio.Task[None]) -> None:
    if not keeping.cancelled():
        keeping.result()
