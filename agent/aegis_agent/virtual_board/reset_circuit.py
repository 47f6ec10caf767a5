# SPDX-License-Identifier: GPL-2.0-or-later
"""
The auto-reset circuit of a board: two transistors between the host's lines and the chip.

    EN is low iff RTS is asserted and DTR is not; IO0 is low iff DTR is and RTS is not.

EN has a capacitor, so it rises slowly, and the strap is read when it has risen. That is why
hosts that set one line after the other, and so let both be asserted for a moment, reach the
loader at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

EN_RISE_S: Final = 0.02  # more than between two writes of a host, less than IO0 is held


class ResetCircuit:
    """
    on_fall  is called when EN goes low
    on_rise  is called when EN has gone high, with whether IO0 was low
    """

    def __init__(self, on_fall: Callable[[], None], on_rise: Callable[[bool], None]) -> None:
        self._on_fall = on_fall
        self._on_rise = on_rise
        self._is_enabled = True
        self._is_io0_low = False
        self._was_io0_low = False
        self._rise_timer: asyncio.TimerHandle | None = None

    @property
    def is_io0_low(self) -> bool:
        return self._is_io0_low

    @property
    def is_high(self) -> bool:
        """EN is high, and has been long enough for the chip to have started."""
        return self._is_enabled and self._rise_timer is None

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Take the host's lines, both at once, as its driver sets them."""
        was_high = self.is_high
        self._is_enabled = not (rts and not dtr)
        self._is_io0_low = dtr and not rts
        if not self._is_enabled:
            self._stop_rising()
            if was_high:
                self._on_fall()
        elif not was_high:
            # Low at any time of the rise: the strap has a capacitor too, and this process may
            # have been too busy to see each change when it came.
            self._was_io0_low |= self._is_io0_low
            if self._rise_timer is None:
                loop = asyncio.get_running_loop()
                self._rise_timer = loop.call_later(EN_RISE_S, self._risen)

    def power_down(self) -> None:
        """Let go of everything: no host, EN high by its resistor, no rise to come."""
        self._stop_rising()
        self._is_enabled, self._is_io0_low = True, False

    def _risen(self) -> None:
        was_io0_low = self._was_io0_low
        self._stop_rising()
        self._on_rise(was_io0_low)

    def _stop_rising(self) -> None:
        self._was_io0_low = False
        if self._rise_timer is not None:
            self._rise_timer.cancel()
            self._rise_timer = None
