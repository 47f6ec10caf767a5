"""
One data channel as a pair of streams: `send` waits for room, iteration waits for messages.

SCTP as aiortc has it never makes a sender wait for a slow reader. So what arrives waits in a
queue of at most 8 MiB, and a peer that fills it is cut off (`link.flooded`): whoever sends files
or terminals keeps to the windows of `frames.py`, far below.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from aegis_protocol.channels import MAX_MESSAGE_BYTES, ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import (
    ChannelClosed,
    LinkBroken,
    LinkFlooded,
    LinkNotOpened,
    MessageTooLarge,
)
from aiortc import InvalidStateError, RTCDataChannel

from aegis_links.send_scheduler import SendScheduler
from aegis_links.states import CHANNEL_MOVES, ChannelState

RECEIVE_QUEUE_BYTES: Final = 8 * 1024 * 1024
MESSAGE_OVERHEAD_BYTES: Final = 128
"""Counted for each message that waits, so that a flood of empty ones has an end too."""


class Channel:
    """
    A channel by its name. Made by PeerLink; there is one for each name offered or granted.

    misbehaved  called with an error when the peer does on it what no peer may
    """

    def __init__(
        self, name: ChannelName, scheduler: SendScheduler, misbehaved: Callable[[AegisError], None]
    ) -> None:
        self.name = name
        self.state = ChannelState.CONNECTING
        self._scheduler = scheduler
        self._misbehaved = misbehaved
        self._raw: RTCDataChannel | None = None
        self._moved = asyncio.Event()
        self._received: deque[bytes | str] = deque()
        self._received_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._failure: AegisError | None = None
        self._refusal: AegisError = ChannelClosed(f"Channel {name} is closed.", channel=name)

    @property
    def closed(self) -> bool:
        return self.state is ChannelState.CLOSED

    async def opened(self, deadline_s: float) -> None:
        """Wait until the channel is open. Raises LinkNotOpened, or why it will never be."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.settled()
        except TimeoutError as exc:
            raise LinkNotOpened(
                f"Channel {self.name} was not opened in {deadline_s:g} s.", channel=self.name
            ) from exc
        if self.closed:
            raise self._refusal

    async def settled(self) -> None:
        """Wait until the channel is open, or will never be."""
        while self.state is ChannelState.CONNECTING:
            await self._moved.wait()

    async def send(self, message: bytes | str) -> None:
        """
        Return when the message stands in the send queue, which keeps its order.

        Waits for the channel to be opened. Raises MessageTooLarge, ChannelClosed, LinkClosed, or
        the error that the link failed with.
        """
        size_bytes = max(1, len(message if isinstance(message, bytes) else message.encode()))
        if size_bytes > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(
                f"A message for {self.name} has {size_bytes} bytes.", size_bytes=size_bytes
            )
        await self.settled()
        if self.closed:
            raise self._refusal
        await self._scheduler.send(self.name, message, size_bytes)

    async def receive(self) -> bytes | str:
        """
        Return the next message.

        Raises ChannelClosed after the last one, or the error that the link failed with. One
        reader at a time: RuntimeError for a second.
        """
        while not self._received:
            if self.closed:
                raise self._failure or self._refusal
            if self._reader is not None:
                raise RuntimeError(f"channel {self.name} has a reader already")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._received.popleft()
        self._received_bytes -= len(message) + MESSAGE_OVERHEAD_BYTES
        return message

    async def __aiter__(self) -> AsyncIterator[bytes | str]:
        """Yield messages until the channel is closed; raise if the link failed."""
        while True:
            try:
                message = await self.receive()
            except AegisError:
                if self._failure is not None:
                    raise
                return
            yield message

    async def close(self) -> None:
        """Close the channel for both peers; what was sent still arrives."""
        self.end(None, self._refusal)
        if self._raw is not None:
            self._raw.close()

    # For PeerLink.

    @property
    def attached(self) -> bool:
        return self._raw is not None

    def attach(self, raw: RTCDataChannel) -> None:
        """Take `raw` as the wire of this channel."""
        self._raw = raw
        raw.on("message", self._take)
        raw.on("open", self._opened)
        raw.on("close", self._closed)
        if raw.readyState == "open":
            self._opened()

    def end(self, failure: AegisError | None, refusal: AegisError) -> None:
        """Close with `failure`, or cleanly if it is None; sends raise `refusal` from now on."""
        if self.closed:
            return
        self._failure, self._refusal = failure, refusal
        self._move(ChannelState.CLOSED)
        self._scheduler.detach(self.name, refusal)
        self._wake()

    def _opened(self) -> None:
        if self.state is ChannelState.CONNECTING and self._raw is not None:
            self._scheduler.attach(self.name, _RawOutlet(self.name, self._raw))
            self._move(ChannelState.OPEN)

    def _closed(self) -> None:
        # With the association over, the link itself is about to end every channel, and knows why.
        if self._raw is not None and self._raw.transport.state != "closed":
            self.end(None, self._refusal)

    def _move(self, to: ChannelState) -> None:
        if to not in CHANNEL_MOVES[self.state]:
            raise RuntimeError(f"channel {self.name} can't move from {self.state} to {to}")
        self.state = to
        self._moved.set()
        self._moved = asyncio.Event()

    def _take(self, message: bytes | str) -> None:
        if self.closed:
            return
        if len(message) > MAX_MESSAGE_BYTES:
            size = len(message)
            self._misbehaved(LinkBroken(f"The peer sent {size} bytes at once on {self.name}."))
            return
        self._received.append(message)
        self._received_bytes += len(message) + MESSAGE_OVERHEAD_BYTES
        if self._received_bytes > RECEIVE_QUEUE_BYTES:
            self._misbehaved(LinkFlooded(f"The peer sends on {self.name} faster than it is read."))
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _RawOutlet:
    """An RTCDataChannel as the scheduler sees it."""

    def __init__(self, name: ChannelName, raw: RTCDataChannel) -> None:
        self._name = name
        self._raw = raw

    @property
    def buffered_bytes(self) -> int:
        return self._raw.bufferedAmount

    def send(self, message: bytes | str) -> None:
        try:
            self._raw.send(message)
        except InvalidStateError as exc:
            raise ChannelClosed(
                f"Channel {self._name} is being closed.", channel=self._name
            ) from exc
