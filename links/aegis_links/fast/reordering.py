"""
How late a packet may be before it counts as lost (RFC 8985, for SCTP).

At first three reports that later ones arrived are enough. On a path that brings packets out of
order that is too soon: what was sent again arrives twice, the peer says so (the duplicates of a
SACK, as in RFC 3708), and packets are given a quarter of a round trip more each time, up to a
whole one. When everything that a recovery had sent again was there already, its loss was none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CALM_RECOVERIES: Final = 16
"""So many losses in a row that were true, and lateness is no longer expected."""

_STEP: Final = 0.25


class Reordering:
    """window_s: how much longer than the newest that arrived a packet may take; 0: no longer."""

    def __init__(self) -> None:
        self.window_s = 0.0
        self._doubtful: set[int] = set()
        self._was_doubled = False
        self._calm = 0

    def seen(self, shortest_rtt_s: float) -> None:
        """A packet that was held to be missing came, late."""
        self.window_s = max(self.window_s, _STEP * shortest_rtt_s)
        self._calm = 0

    def sent_again(self, number: int) -> None:
        self._doubtful.add(number)

    def doubled(self, numbers: Iterable[int], rtt_s: float) -> bool:
        """
        The peer had these already; True when that is all that the recovery had sent again.

        Numbers that were not sent again are the network's own copies, and tell nothing.
        """
        needless = self._doubtful.intersection(numbers)
        if not needless:
            return False
        self._doubtful -= needless
        self._calm = 0
        if not self._was_doubled:  # one step for each recovery
            self._was_doubled = True
            self.window_s = min(self.window_s + _STEP * rtt_s, rtt_s)
        return not self._doubtful

    def recovery_began(self) -> None:
        self._doubtful.clear()
        self._was_doubled = False
        self._calm += 1
        if self._calm > CALM_RECOVERIES:
            self.window_s = 0.0
