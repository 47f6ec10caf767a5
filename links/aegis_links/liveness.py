"""
When a silent peer counts as gone: after six seconds, or after twice the time that what is in
flight needs at the rate measured so far, whichever is longer. Pure: it is given the clock.
"""

from __future__ import annotations

from typing import Final

SILENCE_LIMIT_S: Final = 6.0
SILENCE_CEILING_S: Final = 30.0
TICK_S: Final = 0.5
PING_AFTER_S: Final = 2.0

_STALL_S: Final = 1.0
_WEIGHT: Final = 0.3


class Liveness:
    """Fed once per TICK_S with what is known then; tells whether the peer is gone."""

    def __init__(self, now_s: float) -> None:
        self._ticked_at = now_s
        self._excused_at = now_s
        self._acked_bytes = 0
        self._was_busy = False
        self._bytes_per_s: float | None = None

    def gone(
        self, now_s: float, *, heard_at_s: float, acked_bytes: int, unacked_bytes: int
    ) -> bool:
        """
        acked_bytes    how much the peer has acknowledged since the connection was opened
        unacked_bytes  what is queued or in flight

        If this very process stood still (a suspended laptop, a blocked loop), the silence was
        ours: the peer gets its time anew.
        """
        passed_s = now_s - self._ticked_at
        if passed_s > TICK_S + _STALL_S:
            self._excused_at = now_s
        elif self._was_busy and heard_at_s > self._ticked_at and passed_s > 0:
            rate = (acked_bytes - self._acked_bytes) / passed_s
            before = rate if self._bytes_per_s is None else self._bytes_per_s
            self._bytes_per_s = before + _WEIGHT * (rate - before)
        self._ticked_at = now_s
        self._acked_bytes = acked_bytes
        self._was_busy = unacked_bytes > 0
        silence_s = now_s - max(heard_at_s, self._excused_at)
        return silence_s > self.limit_s(unacked_bytes)

    def limit_s(self, unacked_bytes: int) -> float:
        if not self._bytes_per_s:
            return SILENCE_LIMIT_S
        needed_s = 2 * unacked_bytes / self._bytes_per_s
        return min(SILENCE_CEILING_S, max(SILENCE_LIMIT_S, needed_s))
