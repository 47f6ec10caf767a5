# SPDX-License-Identifier: GPL-2.0-or-later
"""
How much a board may work: its share of a core, and when its firmware only waits.

An image that spins must not take a core, and one that polls for a byte or for a time must cost
next to nothing; neither can be seen in the instructions, both in what they take and touch.
"""

from __future__ import annotations

import time
from typing import Final

# Idle time can't be saved up for longer than this much work at full speed.
_BURST_S: Final = 0.25

# That many looks at an empty UART or at a clock, one soon after the other, are waiting.
_LOOKS: Final = 48
_LOOKS_AFTER_NAP: Final = 4
_SOON_S: Final = 0.0005
_FIRST_NAP_S: Final = 0.001
_LONGEST_NAP_S: Final = 0.02
# A firmware that watches the clock wants to be back in time.
_LONGEST_CLOCK_NAP_S: Final = 0.01


class CpuBudget:
    """
    Keeps the calling thread at `share` of a core (0 < share <= 1) of its own CPU time.

    Made and used in the thread that it measures.
    """

    def __init__(self, share: float) -> None:
        self._share = min(max(share, 0.01), 1.0)
        self._credit_s = _BURST_S
        self._wall_s = time.monotonic()
        self._worked_s = time.thread_time()

    def debt_s(self) -> float:
        """Return how long to sleep before working on; 0 while the share is kept."""
        wall_s, worked_s = time.monotonic(), time.thread_time()
        self._credit_s += (wall_s - self._wall_s) * self._share - (worked_s - self._worked_s)
        self._credit_s = min(self._credit_s, _BURST_S)
        self._wall_s, self._worked_s = wall_s, worked_s
        return max(0.0, -self._credit_s / self._share)


class Waiting:
    """Tells from the registers that firmware touches that it waits, and how long it may sleep."""

    def __init__(self) -> None:
        self._looks = 0
        self._last_look_s: float | None = None
        self._naps = 0
        self._watches_clock = False

    def looked(self) -> bool:
        """Count a look at the empty UART; return whether that is waiting by now."""
        now_s = time.monotonic()
        if self._last_look_s is not None and now_s - self._last_look_s > _SOON_S:
            self._looks = 0  # it worked in between
        self._last_look_s = now_s
        self._looks += 1
        return self._looks >= _LOOKS

    def looked_at_clock(self) -> bool:
        self._watches_clock = True
        return self.looked()

    def acted(self) -> None:
        """Firmware did something that can be seen outside."""
        self._looks = 0
        self._naps = 0

    def nap_s(self) -> float:
        """Return how long to sleep now: longer each time that nothing happened since the last."""
        longest_s = _LONGEST_CLOCK_NAP_S if self._watches_clock else _LONGEST_NAP_S
        nap_s = min(_FIRST_NAP_S * 2.0 ** min(self._naps, 10), longest_s)
        self._naps += 1
        self._watches_clock = False
        self._last_look_s = None
        self._looks = _LOOKS - _LOOKS_AFTER_NAP
        return nap_s
