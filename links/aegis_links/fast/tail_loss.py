"""
Tail loss probes (RFC 8985 section 7, for SCTP): what was sent last, and was lost.

Nothing arrives after it that would show it missing, and the retransmission timer takes a second at
the least. So after some two round trips of silence one packet more is sent, a new one or the last
again: what the peer says to it tells what is missing. There is one at a time, and none while the
timer backs off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from aegis_links.fast.outgoing import Outgoing

LEAST_ACK_DELAY_S: Final = 0.040
"""Twice what our own receiving half waits before it acknowledges a lone packet."""
MOST_ACK_DELAY_S: Final = 0.500  # RFC 9260 section 6.2

_TOLERANCE_S: Final = 1e-3
_LATE_S: Final = 0.010


class TailProbe:
    """
    Calls `probe` when the peer has been silent for too long after the last word either way.

    ack_delay_s  what the peer is given beyond two round trips: twice as much after each probe that
                 proved needless, half as much after each that was not
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, probe: Callable[[], None]) -> None:
        self.ack_delay_s = LEAST_ACK_DELAY_S
        self._loop = loop
        self._probe = probe
        self._due_at: float | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._asked: Outgoing | None = None
        self._asked_serial = 0
        self._resent: int | None = None  # the number of what the newest probe had sent again
        self._mended = False  # which that probe had to do, as far as is known

    def expect(self, srtt_s: float | None, deviation_s: float | None) -> None:
        """Something left or came, and more is on its way: begin to wait anew."""
        asked = self._asked
        if asked is not None and asked.flies and asked.serial == self._asked_serial:
            return  # its answer is due, or the retransmission timer
        if srtt_s is None or deviation_s is None:
            return
        wait_s = max(2 * srtt_s, srtt_s + 4 * deviation_s) + self.ack_delay_s
        self._due_at = self._loop.time() + wait_s
        self._arm(self._due_at)

    def rest(self) -> None:
        """Nothing is on its way, or the retransmission timer has taken over."""
        self._due_at = None
        self._asked = None

    def stop(self) -> None:
        self.rest()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def asked(self, chunk: Outgoing) -> None:
        """`chunk` has left as the probe."""
        if self._mended:
            self.ack_delay_s = max(self.ack_delay_s / 2, LEAST_ACK_DELAY_S)
        self._mended = False
        self._asked, self._asked_serial = chunk, chunk.serial
        self._resent = chunk.number if chunk.sendings > 1 else None

    def repaired(self, shortest_rtt_s: float) -> int | None:
        """
        The number of what was lost and arrived by the probe; to be asked after each report.

        None also where the answer came so soon that it was to the first sending.
        """
        asked = self._asked
        if asked is None or asked.flies:
            return None
        self._asked = None
        since_s = self._loop.time() - asked.sent_at
        if asked.number != self._resent or since_s < shortest_rtt_s:
            return None
        self._mended = True
        return asked.number

    def doubled(self, numbers: Iterable[int]) -> None:
        """The peer had these already; to be told before `repaired` is asked."""
        if self._resent is not None and self._resent in numbers:
            self._resent, self._mended = None, False
            self.ack_delay_s = min(2 * self.ack_delay_s, MOST_ACK_DELAY_S)

    def _arm(self, at: float) -> None:
        # One timer that looks at its deadline when it fires: to move that costs nothing.
        if self._handle is not None:
            if self._fires_at <= at + _TOLERANCE_S:
                return
            self._handle.cancel()
        self._fires_at = at
        self._handle = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._loop.time()
        if self._due_at is None:
            return
        if now > self._fires_at + _LATE_S:
            # This process stood still: the answer may have come and is not read yet.
            self._due_at = max(self._due_at, now + _LATE_S)
        if self._due_at > now + _TOLERANCE_S:
            self._arm(self._due_at)
            return
        self._due_at = None
        self._probe()
