"""
How much may be on its way: RFC 9260 section 7, counted in bytes as in RFC 3465.

The peer acknowledges many packets at once, so slow start grows by what was acknowledged and not
by one packet for each acknowledgment.
"""

from __future__ import annotations

from typing import Final

from aiortc.rtcsctptransport import USERDATA_MAX_LENGTH as FULL_BYTES

INITIAL_BYTES: Final = min(4 * FULL_BYTES, max(2 * FULL_BYTES, 4404))
"""RFC 9260 section 7.2.1."""
LEAST_BYTES: Final = 4 * FULL_BYTES
MOST_BYTES: Final = 2 * 1024 * 1024
BURST_BYTES: Final = 4 * FULL_BYTES
WIDE_BURST_BYTES: Final = 16 * FULL_BYTES
_WIDE_FROM_BYTES: Final = 64 * 1024
_GROWTH_LIMIT_BYTES: Final = 32 * FULL_BYTES
_FASTEST_BYTES_PER_S: Final = 125_000_000
_MARGIN_BYTES: Final = 96 * 1024
_LEAST_SHARE_BYTES: Final = 64 * 1024
"""Less, and each turn sends so little that changing from one to the next is what takes time."""
SHORT_RTT_S: Final = 0.010
"""There a process is as much of a bottleneck as the path."""


def useful_bytes(shortest_rtt_s: float, sharers: int) -> int:
    """
    More than this on its way only stands in queues, where a keystroke then waits behind it: what
    a path of 1 Gbit/s holds, and a margin for the turns of two event loops. On short paths all
    that send from this process share that, since its loop carries them one after the other.
    """
    whole_bytes = _MARGIN_BYTES + int(shortest_rtt_s * _FASTEST_BYTES_PER_S)
    if sharers == 1 or shortest_rtt_s >= SHORT_RTT_S:
        return whole_bytes
    return max(_LEAST_SHARE_BYTES, whole_bytes // sharers)


class CongestionWindow:
    def __init__(self) -> None:
        self.size_bytes = INITIAL_BYTES
        self.threshold_bytes = MOST_BYTES
        self._partial_bytes = 0

    @property
    def burst_bytes(self) -> int:
        """How much may leave at once without an acknowledgment that asks for it."""
        return WIDE_BURST_BYTES if self.size_bytes >= _WIDE_FROM_BYTES else BURST_BYTES

    def was_used_by(self, flight_bytes: int) -> bool:
        """Whether so much on its way is reason to let more: an idle sender's window stays."""
        if self.size_bytes <= self.threshold_bytes:
            return 2 * flight_bytes >= self.size_bytes
        return flight_bytes >= self.size_bytes

    def acknowledged(self, acked_bytes: int) -> None:
        """Grow, after all of the window was in use."""
        if self.size_bytes <= self.threshold_bytes:
            self.size_bytes += min(acked_bytes, _GROWTH_LIMIT_BYTES)
        else:
            self._partial_bytes += acked_bytes
            if self._partial_bytes >= self.size_bytes:
                self._partial_bytes -= self.size_bytes
                self.size_bytes += FULL_BYTES
        self.size_bytes = min(self.size_bytes, MOST_BYTES)

    def lost(self) -> None:
        """Something is missing while what was sent later arrived."""
        self._halve()
        self.size_bytes = self.threshold_bytes

    def restore(self, earlier: tuple[int, int]) -> None:
        """Be as large as at an earlier `snapshot`: nothing had been lost after all."""
        self.size_bytes = max(self.size_bytes, earlier[0])
        self.threshold_bytes = max(self.threshold_bytes, earlier[1])

    def snapshot(self) -> tuple[int, int]:
        return self.size_bytes, self.threshold_bytes

    def timed_out(self) -> None:
        """Nothing came back in time."""
        self._halve()
        self.size_bytes = FULL_BYTES

    def _halve(self) -> None:
        self.threshold_bytes = max(self.size_bytes // 2, LEAST_BYTES)
        self._partial_bytes = 0
