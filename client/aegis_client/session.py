"""
An open session with an agent: requests, channels, and what the agent tells about its tasks.

Every wait in it ends with a typed error when the agent is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import structlog
from aegis_links.streams import StreamPort
from aegis_links.transfers import TransferPort
from aegis_protocol.board import Board
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import ControlAnswerInvalid
from aegis_protocol.failures.link import ChannelClosed, LinkClosed, PeerGone, RpcTimedOut
from aegis_protocol.http_api import GrantReply
from aegis_protocol.model import Wire
from aegis_protocol.rpc import (
    BoardsResult,
    ChannelRejected,
    Empty,
    SessionClosing,
    TaskChanged,
    TaskInfo,
    TaskProgress,
)
from aegis_protocol.states import ended
from pydantic import ValidationError

from aegis_client.changes import Changes
from aegis_client.handshake import Greeted
from aegis_client.reporter import Reporter
from aegis_client.signals import Signals

GOODBYE_S: Final = 2.0
DOUBT_S: Final = 6.0
"""How long an agent that control has lost may leave a question unanswered."""

_log = structlog.get_logger("aegis_client.session")

W = TypeVar("W", bound=Wire)
T = TypeVar("T")


class Session:
    """One job on one agent. Made by `connection.open_session`, which also closes it."""

    def __init__(self, greeted: Greeted, grant: GrantReply, news: TaskNews) -> None:
        self.job_id = grant.job_id
        self.boards: tuple[Board, ...] = grant.boards
        self.actions = frozenset(grant.actions)
        self.agent = greeted.agent
        self.hello = greeted.hello
        self.keep_job = False
        """Leave the job as it is when the session is left: it goes on without a peer."""
        self._greeted = greeted
        self._news = news
        self._heard_all = False
        self._transfers: dict[ChannelName, TransferPort] = {}
        self._streams: dict[ChannelName, StreamPort] = {}
        for task in greeted.hello.tasks:
            news.tasks.setdefault(task.task_id, task)

    @property
    def source(self) -> TransferPort:
        return self._transfers[ChannelName.SOURCE]

    @property
    def firmware(self) -> TransferPort:
        return self._transfers[ChannelName.FIRMWARE]

    @property
    def pty(self) -> StreamPort:
        return self._streams[ChannelName.PTY]

    @property
    def serial(self) -> StreamPort:
        return self._streams[ChannelName.SERIAL]

    @property
    def tasks(self) -> dict[str, TaskInfo]:
        """The job's tasks by id, as the agent last told of them."""
        return self._news.tasks

    @property
    def over(self) -> bool:
        """Nothing can be asked any more."""
        return self._greeted.rpc.closed

    async def call(
        self, method: str, params: Wire, result: type[W], *, deadline_s: float = 60.0
    ) -> W:
        """Request `method`; the agent's error comes as its own class."""
        answer = await self._greeted.rpc.request(
            method, params.model_dump(mode="json", exclude_none=True), deadline_s=deadline_s
        )
        try:
            return result.model_validate(answer)
        except ValidationError as exc:
            raise ControlAnswerInvalid(
                f"the agent's answer to {method} is no {result.__name__}",
                remedy="Compare `--version` on both sides.",
            ) from exc

    async def until(self, look: Callable[[], T | None]) -> T:
        """Return the first value other than None that `look` finds, or raise `lost()`."""

        def found_or_over() -> tuple[T | None] | None:
            found = look()
            return (found,) if found is not None or self._heard_all else None

        (found,) = await self._news.changes.until(found_or_over)
        if found is None:
            raise self.lost(None)
        return found

    async def task_ended(self, task_id: str) -> TaskInfo:
        """Return the task once it has ended."""

        def look() -> TaskInfo | None:
            task = self.tasks.get(task_id)
            return task if task is not None and ended(task.state) else None

        return await self.until(look)

    async def end_job(self) -> None:
        """Tell the agent that the job is done."""
        await self.call("job.end", Empty(), Empty, deadline_s=GOODBYE_S)

    def lost(self, cause: AegisError | None) -> AegisError:
        """What to tell the user when the link ended although nobody here closed it."""
        if self._news.closing is not None:
            return self._news.closing
        cause = self._greeted.link.error or cause
        if cause is not None and not isinstance(cause, PeerGone | LinkClosed | ChannelClosed):
            return cause
        return AgentGone(
            f"agent {self.agent.name!r} is gone" + (f": {cause.message}" if cause else ""),
            agent_id=self.agent.id,
            agent=self.agent.name,
            job_id=self.job_id,
        )

    async def open_ports(self, stack: AsyncExitStack, channels: Iterable[ChannelName]) -> None:
        """Take over the reading of `channels`, until `stack` is closed."""
        link = self._greeted.link
        for name in channels:
            match name:
                case ChannelName.SOURCE | ChannelName.FIRMWARE:
                    port = TransferPort.over(link.channel(name))
                    self._transfers[name] = await stack.enter_async_context(port)
                case ChannelName.PTY | ChannelName.SERIAL:
                    streams = StreamPort.over(link.channel(name))
                    self._streams[name] = await stack.enter_async_context(streams)
                case ChannelName.ESPCTL:
                    pass

    async def wait_over(self) -> None:
        """Return when the link has ended and its last notification was taken."""
        await self._greeted.rpc.wait_closed()
        # The last notifications are taken by a task that was woken before this one.
        await asyncio.sleep(0)
        self._heard_all = True
        self._news.changes.wake()

    async def doubt(self, signals: Signals) -> None:
        """
        Each time control says that the agent is gone, ask the agent itself; end the link when it
        does not answer. Any answer will do, a refusal too.
        """
        while True:
            await signals.until(lambda: signals.closed)
            signals.closed = None
            try:
                await self.call("boards.list", Empty(), BoardsResult, deadline_s=DOUBT_S)
            except RpcTimedOut:
                gone = PeerGone("it has left control, and does not answer here either")
                await self._greeted.link.close(gone)
                return
            except AegisError as exc:
                _log.info("agent.doubted", code=exc.code)


class TaskNews:
    """Takes the notifications of one session."""

    def __init__(self, reporter: Reporter) -> None:
        self.changes = Changes()
        self.tasks: dict[str, TaskInfo] = {}
        self.closing: AegisError | None = None
        """Why the agent said that it is about to close."""
        self._reporter = reporter

    async def take(self, method: str, params: dict[str, Any]) -> None:
        """One that makes no sense is logged and dropped."""
        try:
            match method:
                case "task.changed":
                    changed = TaskChanged.model_validate(params).task
                    self.tasks[changed.task_id] = changed
                case "task.progress":
                    seen = TaskProgress.model_validate(params)
                    task = self.tasks.get(seen.task_id)
                    kind = "flash " if task is not None and task.kind == "flash" else ""
                    self._reporter.progress(kind + seen.phase, seen.done, seen.total, seen.detail)
                case "channel.rejected":
                    error = ChannelRejected.model_validate(params).error
                    self._reporter.note(f"{error.message} ({error.code})")
                case "session.closing":
                    said = SessionClosing.model_validate(params).error
                    self.closing = from_body(said) if said else None
                case _:
                    _log.info("notification.ignored", method=method[:40])
        except ValidationError:
            _log.warning("notification.invalid", method=method[:40])
        self.changes.wake()
