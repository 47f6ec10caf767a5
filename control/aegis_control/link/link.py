"""One agent's live link: what the agent said of itself, and the frames on their way to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from aegis_protocol.board import Board
from aegis_protocol.control_link import Hello, Ping, Refused, ToAgent
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import AgentOffline
from aiohttp import web

from aegis_control.link.linked import facts_of
from aegis_control.log import get_logger

log = get_logger("link")

_QUEUE_FRAMES: Final = 256
_LAST_WORDS_S: Final = 2.0


class Link:
    """
    ping_s  a ping goes out after so long without another frame

    `boards`, `paused`, `draining` and `warm` are as the agent said last.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.BaseTransport | None,
        hello: Hello,
        *,
        name: str,
        epoch: int,
        ping_s: float,
    ) -> None:
        self.agent_id = hello.agent_id
        self.name = name
        self.epoch = epoch
        self.boards: tuple[Board, ...] = hello.boards
        self.warm: frozenset[str] = frozenset(hello.warm_projects)
        self.paused: str | None = hello.paused
        self.draining: bool = False
        self.heard_at = time.time()
        self.end_cause = "closed"
        self._socket = socket
        self._transport = transport
        self._ping_s = ping_s
        self._sent_at = time.monotonic()
        self._next_ping: asyncio.TimerHandle | None = None
        self._out: asyncio.Queue[ToAgent | None] = asyncio.Queue(_QUEUE_FRAMES)

    def facts(self) -> Mapping[str, Any]:
        """What other replicas need to know of it."""
        return facts_of(self.boards, self.warm, self.paused, self.draining)

    def send(self, frame: ToAgent) -> None:
        """Put `frame` on its way. AgentOffline when the link is ending or can't keep up."""
        if self._socket.closed:
            raise AgentOffline(f"the link of {self.name} is closed", agent_id=self.agent_id)
        try:
            self._out.put_nowait(frame)
        except asyncio.QueueFull as exc:
            log.warning("link.queue_overflowed", agent_id=self.agent_id, frame=frame.type)
            raise AgentOffline(
                f"the link of {self.name} does not keep up", agent_id=self.agent_id
            ) from exc

    def close(self, error: AegisError | None, *, cause: str) -> None:
        """Say why, then close; what is not gone within two seconds is cut."""
        self.end_cause = cause
        while not self._out.empty():
            self._out.get_nowait()
        if error is not None:
            self._out.put_nowait(Refused(error=error.body()))
        self._out.put_nowait(None)
        if isinstance(self._transport, asyncio.Transport):
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._transport.abort)

    async def write(self) -> None:
        """Send frames, and pings in between, until `close` or until the socket breaks."""
        self._ping_later(self._ping_s)
        try:
            while (frame := await self._out.get()) is not None:
                self._sent_at = time.monotonic()
                try:
                    await self._socket.send_str(frame.model_dump_json())
                except ConnectionError:
                    break
            await self._socket.close()
        finally:
            if self._next_ping is not None:
                self._next_ping.cancel()

    def _ping_later(self, after_s: float) -> None:
        # a timer, and not a deadline on the wait for a frame: that would cost a cancellation per
        # ping, and pings are most of what a control with many idle agents does
        self._next_ping = asyncio.get_running_loop().call_later(after_s, self._ping)

    def _ping(self) -> None:
        left_s = self._sent_at + self._ping_s - time.monotonic()
        if left_s > 0:
            self._ping_later(left_s)
            return
        if self._out.empty():
            self._out.put_nowait(Ping(time=time.time()))
        self._ping_later(self._ping_s)
