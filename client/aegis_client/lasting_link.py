"""
The connection of a job, made again whenever it is lost though nobody here closed it.

Whoever needs one waits for `connection`; when there is no way back, every wait ends with one typed
error, `failure`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, TypeVar

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.link import LinkClosed, LinkError

from aegis_client.connection import LOST, Connection
from aegis_client.connector import Connector
from aegis_client.hops import Hop
from aegis_client.reporter import Reporter
from aegis_client.signals import Signals
from aegis_client.task_news import TaskNews

MOST_BREAKS: Final = 3
"""How many connections in a row may break before they were STEADY_S old."""
STEADY_S: Final = 10.0
_NOTICE_S: Final = 1.0
"""How much later than a request the connection itself may notice that it is lost."""

_log = structlog.get_logger("aegis_client.lasting_link")

T = TypeVar("T")


class LastingLink:
    """`keep` runs as long as it is wanted."""

    def __init__(
        self,
        job_id: str,
        connector: Connector,
        signals: Signals,
        news: TaskNews,
        reporter: Reporter,
    ) -> None:
        self.job_id = job_id
        self.failure: AegisError | None = None
        """Why there is no connection any more, and never will be."""
        self._connector, self._signals = connector, signals
        self._news, self._reporter = news, reporter
        self._now: Connection | None = None
        self._last: Connection | None = None
        self._leaving = asyncio.Event()
        self._breaks = 0

    @property
    def now(self) -> Connection | None:
        """The connection there is at this moment."""
        return self._now if self._now is not None and not self._now.over else None

    @property
    def newest(self) -> Connection:
        """The connection there is, or was last. Wait for the first one before."""
        if self._last is None:
            raise RuntimeError("there was no connection yet")
        return self._last

    async def connection(self) -> Connection:
        """Return the connection there is, or the next one. Raises `failure`."""

        def look() -> Connection | AegisError | None:
            return self._now or self.failure

        found: Connection | AegisError = await self._news.changes.until(look)
        if isinstance(found, AegisError):
            raise found
        return found

    async def repeated(self, step: Callable[[Connection], Awaitable[T]]) -> T:
        """
        Run `step` on a connection, and again on the next one each time that one is lost in it.

        Raises what `step` raises otherwise, and `failure`.
        """
        while True:
            connection = await self.connection()
            try:
                return await step(connection)
            except LinkError as exc:
                # What the peer aborts on its way out is a loss too, if that was its way out.
                if not (isinstance(exc, LOST) or exc.retryable):
                    raise
                if not await self.lost(connection):
                    raise

    async def lost(self, connection: Connection) -> bool:
        """Tell whether `connection` is over, or is so in a moment; return once that was noticed."""
        try:
            async with asyncio.timeout(_NOTICE_S):
                await self._news.changes.until(lambda: self._now is not connection or None)
        except TimeoutError:
            return False
        return True

    def leave(self) -> None:
        """Let `keep` close the connection, and return."""
        self._leaving.set()

    async def keep(self) -> None:
        """Connect, and connect again when the connection is lost, until `leave` or `failure`."""
        try:
            while not self._leaving.is_set():
                async with AsyncExitStack() as stack:
                    connection = await self._connector.connect(stack)
                    began = asyncio.get_running_loop().time()
                    self._greeted(connection)
                    left = await self._lived(connection)
                    self._move(None)
                if not left:
                    lived_s = asyncio.get_running_loop().time() - began
                    self._broke(connection, lived_s)
        except AegisError as exc:
            self._fail(exc)
        except Exception:
            self._fail(AegisError("a defect in espctl ended the session"))
            raise

    def _greeted(self, connection: Connection) -> None:
        missing = self._news.greeted(connection.hello.tasks)
        if missing:
            raise self._gone(connection, f"it came back without the {missing[0].kind}")
        self._last = connection
        self._move(connection)

    async def _lived(self, connection: Connection) -> bool:
        """Return at the end of the connection; True when it was asked for here."""
        over = asyncio.create_task(connection.wait_over(), name="link-end")
        leaving = asyncio.create_task(self._leaving.wait(), name="leave")
        doubting = asyncio.create_task(connection.doubt(self._signals), name="doubt")
        try:
            await asyncio.wait([over, leaving], return_when=asyncio.FIRST_COMPLETED)
            return leaving.done()
        finally:
            for task in (over, leaving, doubting):
                task.cancel()
            await asyncio.gather(over, leaving, doubting, return_exceptions=True)

    def _broke(self, connection: Connection, lived_s: float) -> None:
        """Tell of a connection that was lost; raise where another one would not help."""
        if self._news.closing is not None:
            raise self._news.closing
        cause = connection.link.error or LinkClosed("the agent closed it")
        if not isinstance(cause, LOST):
            raise cause
        self._breaks = 1 if lived_s >= STEADY_S else self._breaks + 1
        if self._breaks > MOST_BREAKS:
            raise self._gone(connection, "it closes one connection after the other")
        _log.info(
            "connection.lost",
            job_id=self.job_id,
            code=cause.code,
            lived_s=round(lived_s, 1),
            breaks=self._breaks,
        )
        self._reporter.note(
            f"lost the connection to {connection.agent.name}: {cause.message} ({cause.code}); "
            "connecting again"
        )

    def _gone(self, connection: Connection, why: str) -> AgentGone:
        return AgentGone(
            f"agent {connection.agent.name!r} is gone: {why}",
            agent_id=connection.agent.id,
            agent=connection.agent.name,
            job_id=self.job_id,
            hop=str(Hop.AGENT),
        )

    def _fail(self, error: AegisError) -> None:
        hop = error.facts.get("hop")
        if self._last is not None and hop is not None and not isinstance(error, AgentGone):
            error.message = (
                f"the connection to agent {self._last.agent.name!r} was lost, and making another "
                f"failed at {hop}: {error.message}"
            )
            error.args = (error.message,)
        self.failure = error
        self._move(None)

    def _move(self, now: Connection | None) -> None:
        self._now = now
        self._news.changes.wake()
