"""
One job on one agent: what may be asked of it, and what is known of its tasks.

It lasts over as many connections as it takes: what waits here goes on when the next one is there,
streams and downloads from the byte where they were, tasks as they stand by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from typing import Final, TypeVar

from aegis_protocol.board import Board
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import LinkClosed
from aegis_protocol.model import Wire
from aegis_protocol.rpc import Empty, SessionHelloResult, TaskInfo, TaskKind
from aegis_protocol.states import ended

from aegis_client.connection import Connection
from aegis_client.lasting_link import LastingLink
from aegis_client.task_news import TaskNews
from aegis_client.trust import AgentIdentity

GOODBYE_S: Final = 2.0

W = TypeVar("W", bound=Wire)
T = TypeVar("T")


class Session:
    """Made by `open_session`, which also closes it. There was a connection when it is there."""

    def __init__(self, link: LastingLink, news: TaskNews) -> None:
        self.job_id = link.job_id
        self.link = link
        self.keep_job = False
        """Leave the job as it is when the session is left: it goes on without a peer."""
        self._news = news

    @property
    def agent(self) -> AgentIdentity:
        return self.link.newest.agent

    @property
    def hello(self) -> SessionHelloResult:
        return self.link.newest.hello

    @property
    def boards(self) -> tuple[Board, ...]:
        """The boards that the job holds."""
        return self.link.newest.grant.boards

    @property
    def actions(self) -> frozenset[str]:
        return frozenset(self.link.newest.grant.actions)

    @property
    def tasks(self) -> dict[str, TaskInfo]:
        """The job's tasks by id, as the agent last told of them."""
        return self._news.tasks

    @property
    def connected(self) -> bool:
        return self.link.now is not None

    @property
    def failure(self) -> AegisError | None:
        """Why there is no connection any more, and never will be."""
        return self.link.failure

    async def repeated(self, step: Callable[[Connection], Awaitable[T]]) -> T:
        """See `LastingLink.repeated`."""
        return await self.link.repeated(step)

    async def call(
        self, method: str, params: Wire, result: type[W], *, deadline_s: float = 60.0
    ) -> W:
        """Request what may be asked twice: once more wherever the connection is lost meanwhile."""
        return await self.repeated(
            lambda connection: connection.call(method, params, result, deadline_s=deadline_s)
        )

    async def call_now(self, method: str, params: Wire, result: type[W], *, deadline_s: float) -> W:
        """Request on the connection there is, if there is one. Raises LinkClosed at once if not."""
        now = self.link.now
        if now is None:
            raise LinkClosed("there is no connection at this moment")
        return await now.call(method, params, result, deadline_s=deadline_s)

    async def until(self, look: Callable[[], T | None]) -> T:
        """Return the first value other than None that `look` finds, or raise `failure`."""

        def found_or_failed() -> tuple[T] | AegisError | None:
            found = look()
            return (found,) if found is not None else self.failure

        found: tuple[T] | AegisError = await self._news.changes.until(found_or_failed)
        if isinstance(found, AegisError):
            raise found
        return found[0]

    def new_task(self, kind: TaskKind, before: Set[str]) -> TaskInfo | None:
        """Return the newest task of `kind` that is not among the ids `before`, if there is one."""
        new = [t for t in self.tasks.values() if t.kind == kind and t.task_id not in before]
        return max(new, key=lambda task: task.task_id, default=None)

    async def task_ended(self, task_id: str) -> TaskInfo:
        """Return the task once it has ended."""

        def look() -> TaskInfo | None:
            task = self.tasks.get(task_id)
            return task if task is not None and ended(task.state) else None

        return await self.until(look)

    async def end_job(self) -> None:
        """Tell the agent that the job is done."""
        await self.call_now("job.end", Empty(), Empty, deadline_s=GOODBYE_S)
