"""
Whether agents live: one look at all links, some thirty times in the time that silence may last.

A timer for each link would wake control for each ping by itself, and a deadline on each wait for a
frame would be set and taken back with each frame: with a thousand agents that is what control does
all day. So pings go out in batches, and silence is seen at a look.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aegis_protocol.control_link import Ping

from aegis_control.hub import set_within
from aegis_control.link.registry import Links
from aegis_control.link.socket import framed
from aegis_control.log import get_logger

log = get_logger("link")

_PINGS: Final = 3
"""Within the time that silence may last."""
_LOOKS: Final = 30


class Pulse:
    """silence_s: a link without a frame for so long is down; that is seen within a thirtieth."""

    def __init__(self, links: Links, *, silence_s: float) -> None:
        self.silence_s: Final = silence_s
        self.ping_s: Final = silence_s / _PINGS
        self._links = links
        self._look_s = silence_s / _LOOKS
        self._looked_s = time.monotonic()

    async def run(self, stopping: asyncio.Event) -> None:
        """Look until `stopping` is set."""
        self._looked_s = time.monotonic()
        while not await set_within(stopping, self._look_s):
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """Ping whoever is due, and cut who was silent for too long."""
        overdue_s = now_s - self._looked_s - self._look_s
        self._looked_s = now_s
        stood_still = overdue_s > self._look_s
        frame = framed(Ping(time=time.time()).model_dump_json())
        for link in self._links.own().values():
            if stood_still:  # what came meanwhile is not read yet
                link.forgive(overdue_s, now_s)
            if link.silent_s(now_s) > self.silence_s:
                link.cut(cause="silent")
            else:
                link.ping(frame, now_s, every_s=self.ping_s - self._look_s / 2)
