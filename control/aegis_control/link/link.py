"""One agent's live link: what the agent said of itself, and frames on their way to it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from aegis_protocol.board import Board
from aegis_protocol.control_link import Hello, Refused, ToAgent
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import AgentOffline

from aegis_control.link.linked import facts_of
from aegis_control.link.socket import LinkSocket, closing, framed
from aegis_control.log import get_logger

log = get_logger("link")

_UNSENT_BYTES: Final = 1 << 20
"""Frames that the agent has not taken yet; with more it does not keep up."""
_LAST_WORDS_S: Final = 2.0


class Link:
    """
    `boards`, `paused`, `draining` and `warm` are as the agent said last.

    noted_at  `heard_at` as it was written down last
    """

    __slots__ = (
        "_busy",
        "_pinged_s",
        "_sent_s",
        "_socket",
        "_transport",
        "agent_id",
        "boards",
        "draining",
        "end_cause",
        "ending",
        "epoch",
        "name",
        "noted_at",
        "paused",
        "warm",
    )

    def __init__(
        self,
        socket: LinkSocket,
        transport: asyncio.Transport,
        hello: Hello,
        *,
        name: str,
        epoch: int,
    ) -> None:
        self.agent_id = hello.agent_id
        self.name = name
        self.epoch = epoch
        self.boards: tuple[Board, ...] = hello.boards
        self.warm: frozenset[str] = frozenset(hello.warm_projects)
        self.paused: str | None = hello.paused
        self.draining: bool = False
        self.end_cause = "closed"
        self.ending = False
        self.noted_at = time.time()
        self._socket = socket
        self._transport = transport
        self._busy = True
        self._pinged_s = self._sent_s = time.monotonic()

    def begin(self, *, ping_within_s: float) -> None:
        """
        The agent has proven who it is: from now on its pongs are life, and no more than that.

        The first ping is due within that time: of many that link up at once, not all at once.
        """
        self._socket.inbox.takes_note = True
        begun_s = time.monotonic() - random.uniform(0, ping_within_s)  # noqa: S311
        self._pinged_s = self._sent_s = begun_s

    @property
    def heard_at(self) -> float:
        """When the agent was last heard, unix seconds."""
        return time.time() - (time.monotonic() - self._socket.inbox.heard_s)

    def facts(self) -> Mapping[str, Any]:
        """What other replicas need to know of it."""
        return facts_of(self.boards, self.warm, self.paused, self.draining)

    def send(self, frame: ToAgent) -> None:
        """Send `frame`. AgentOffline when the link is ending or can't keep up."""
        if self._is_over():
            raise AgentOffline(f"the link of {self.name} is closed", agent_id=self.agent_id)
        if self._transport.get_write_buffer_size() > _UNSENT_BYTES:
            log.warning("link.queue_overflowed", agent_id=self.agent_id, frame=frame.type)
            raise AgentOffline(f"the link of {self.name} does not keep up", agent_id=self.agent_id)
        self._sent_s = time.monotonic()
        self._transport.write(framed(frame.model_dump_json()))

    def close(self, error: AegisError | None, *, cause: str) -> None:
        """Say why, then close; what is not gone within two seconds is cut. No frame counts now."""
        if self.ending:
            return
        if not self._is_over():
            if error is not None:
                self._transport.write(framed(Refused(error=error.body()).model_dump_json()))
            self._transport.write(closing())
        self.ending = True
        self.end_cause = cause
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._transport.abort)

    def cut(self, *, cause: str) -> None:
        """End it at once, without a word."""
        self.ending = True
        self.end_cause = cause
        self._transport.abort()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block lasts we don't listen; so it is until the first `listen`, too."""
        self._busy = True
        try:
            yield
        finally:
            self.listen()

    def listen(self) -> None:
        """What the agent does not say from now on is its silence."""
        self._busy = False
        self._socket.inbox.heard_s = time.monotonic()

    def silent_s(self, now_s: float) -> float:
        """For how long the agent has said nothing while we listened."""
        return 0.0 if self._busy or self.ending else now_s - self._socket.inbox.heard_s

    def forgive(self, silence_s: float, now_s: float) -> None:
        """Let so much of its silence not count: nobody listened."""
        self._socket.inbox.heard_s = min(now_s, self._socket.inbox.heard_s + silence_s)

    def ping(self, frame: bytes, now_s: float, *, every_s: float) -> None:
        """Send the ping `frame`, unless both sides were heard within `every_s`."""
        quiet_since_s = min(self._sent_s, self._socket.inbox.heard_s)
        if now_s - max(self._pinged_s, quiet_since_s) < every_s or self._is_over():
            return
        self._pinged_s = self._sent_s = now_s
        self._transport.write(frame)

    def _is_over(self) -> bool:
        return self.ending or self._socket.closed or self._transport.is_closing()
