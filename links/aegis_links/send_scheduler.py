"""
Which message goes next. One scheduler per connection, because one queue serves all channels.

Whatever is handed to aiortc waits in line, so little is: a keystroke must not stand behind
firmware. Messages wait here instead, by channel, and the first tier that has one goes first:

    control   espctl             fills the send queue up to its cap
    terminal  pty, serial        up to a payload more than bulk
    bulk      source, firmware   up to the working level

Within a tier the channels take turns; within a channel messages keep their order. The sum of the
channels' `bufferedAmount` never exceeds the cap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from aegis_protocol.channels import (
    MAX_MESSAGE_BYTES,
    PAYLOAD_BYTES,
    SEND_QUEUE_CAP_BYTES,
    ChannelName,
)
from aegis_protocol.errors import AegisError

from aegis_links.pacing import Pacer

_FRAME_BYTES: Final = PAYLOAD_BYTES + 64
_SHORT_RTT_S: Final = 0.010
_LONG_RTT_S: Final = 0.050


class Tier(IntEnum):
    CONTROL = 0
    TERMINAL = 1
    BULK = 2


TIERS: Final = {
    ChannelName.ESPCTL: Tier.CONTROL,
    ChannelName.PTY: Tier.TERMINAL,
    ChannelName.SERIAL: Tier.TERMINAL,
    ChannelName.SOURCE: Tier.BULK,
    ChannelName.FIRMWARE: Tier.BULK,
}


class Outlet(Protocol):
    """Where messages leave. `send` never waits; `buffered_bytes` is what it still holds."""

    @property
    def buffered_bytes(self) -> int: ...

    def send(self, message: bytes | str) -> None: ...


@dataclass(eq=False, slots=True)
class _Waiting:
    message: bytes | str
    size_bytes: int
    handed: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Line:
    tier: Tier
    outlet: Outlet
    waiting: deque[_Waiting] = field(default_factory=deque)


class SendScheduler:
    """
    cap_bytes  from MAX_MESSAGE_BYTES to SEND_QUEUE_CAP_BYTES; ValueError otherwise
    rtt_s      the path's round-trip time as known now: a long path starves on a short queue
    """

    def __init__(self, *, cap_bytes: int, pacer: Pacer, rtt_s: Callable[[], float | None]) -> None:
        if not MAX_MESSAGE_BYTES <= cap_bytes <= SEND_QUEUE_CAP_BYTES:
            raise ValueError(
                f"a send queue has {MAX_MESSAGE_BYTES} to {SEND_QUEUE_CAP_BYTES} bytes"
            )
        self._loop = asyncio.get_running_loop()
        self.high_water_bytes = 0
        self.handed_bytes = 0
        self.handed_at = self._loop.time()
        self._cap_bytes = cap_bytes
        self._pacer = pacer
        self._rtt_s = rtt_s
        self._lines: dict[ChannelName, _Line] = {}
        self._turns: tuple[deque[_Line], ...] = tuple(deque() for _ in Tier)
        self._alarm: asyncio.TimerHandle | None = None
        self._nobody_waits = True

    @property
    def buffered_bytes(self) -> int:
        total_bytes = 0
        for line in self._lines.values():  # asked several times for each message
            total_bytes += line.outlet.buffered_bytes
        return total_bytes

    def attach(self, name: ChannelName, outlet: Outlet) -> None:
        line = _Line(TIERS[name], outlet)
        self._lines[name] = line
        self._turns[line.tier].append(line)

    def detach(self, name: ChannelName, error: AegisError) -> None:
        """Let the messages that still wait for `name` fail with `error`."""
        line = self._lines.pop(name, None)
        if line is None:
            return
        self._turns[line.tier].remove(line)
        for item in line.waiting:
            if not item.handed.done():
                item.handed.set_exception(error)

    def end(self, error: AegisError) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for name in list(self._lines):
            self.detach(name, error)

    async def send(self, name: ChannelName, message: bytes | str, size_bytes: int) -> None:
        """Return when the message was handed to the outlet of `name`, in its turn."""
        item = _Waiting(message, size_bytes, self._loop.create_future())
        self._lines[name].waiting.append(item)
        self._nobody_waits = False
        self.pump()
        await item.handed

    def send_now(self, name: ChannelName, message: str) -> bool:
        """Send a small ASCII message if it need not wait; tell whether it was sent."""
        line = self._lines.get(name)
        if line is None or line.waiting or not self._fits(line.tier, len(message)):
            return False
        self._hand(line, message, len(message))
        return True

    def pump(self) -> None:
        """Hand on what may go now. Called whenever the send queue may have become shorter."""
        while (line := self._next_line()) is not None:
            item = line.waiting[0]
            if not self._fits(line.tier, item.size_bytes):
                return
            # Requests and pings are counted but never held back: a limit must not look like
            # a dead peer.
            if line.tier is not Tier.CONTROL and (delay_s := self._pacer.delay_s()) > 0:
                self._wake_after(delay_s)
                return
            line.waiting.popleft()
            self._turns[line.tier].rotate(-1)
            try:
                self._hand(line, item.message, item.size_bytes)
            except AegisError as exc:
                item.handed.set_exception(exc)
            else:
                item.handed.set_result(None)

    def _next_line(self) -> _Line | None:
        if self._nobody_waits:
            return None
        for lines in self._turns:
            for _ in range(len(lines)):
                line = lines[0]
                while line.waiting and line.waiting[0].handed.done():
                    line.waiting.popleft()  # its sender was canceled
                if line.waiting:
                    return line
                lines.rotate(-1)
        self._nobody_waits = True
        return None

    def _fits(self, tier: Tier, size_bytes: int) -> bool:
        buffered_bytes = self.buffered_bytes
        return buffered_bytes == 0 or buffered_bytes + size_bytes <= self._level_bytes(tier)

    def _level_bytes(self, tier: Tier) -> int:
        if tier is Tier.CONTROL:
            return self._cap_bytes
        rtt_s = self._rtt_s() or 0.0
        frames = 2 if rtt_s < _SHORT_RTT_S else 4 if rtt_s < _LONG_RTT_S else 6
        if tier is Tier.TERMINAL:
            frames += 1
        return min(frames * _FRAME_BYTES, self._cap_bytes)

    def _hand(self, line: _Line, message: bytes | str, size_bytes: int) -> None:
        line.outlet.send(message)
        self.handed_bytes += size_bytes
        self.handed_at = self._loop.time()
        self._pacer.took(size_bytes)
        self.high_water_bytes = max(self.high_water_bytes, self.buffered_bytes)

    def _wake_after(self, delay_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(delay_s, self.pump)
