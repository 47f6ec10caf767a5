"""
systemd's watchdog, fed by work that went through: a tick of the scheduler, and a turn to write.

A loop that stands still, or a transaction that never gives its turn back, stops the feeding, and
systemd kills and restarts control. A store that fails is no such thing: a restart would not mend
it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from sqlalchemy.exc import DBAPIError

from aegis_control.hub import set_within
from aegis_control.log import get_logger
from aegis_control.placement import Placement
from aegis_control.service_notify import notify
from aegis_control.store.database import Database

log = get_logger("watchdog")

_TIMES_IN_ITS_TIME: Final = 3


def watchdog_s() -> float | None:
    """After how long without a word the service manager kills us; None: it does not watch us."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) else None


async def feed(
    database: Database, placement: Placement, stopping: asyncio.Event, *, within_s: float
) -> None:
    """Feed the watchdog as long as control works, until `stopping` is set."""
    pause_s = within_s / _TIMES_IN_ITS_TIME
    while not await set_within(stopping, pause_s):
        try:
            async with asyncio.timeout(pause_s):
                await _work(database, placement)
        except TimeoutError:
            log.error("watchdog.starved", after_s=round(pause_s, 1))  # noqa: TRY400
            continue
        notify("WATCHDOG=1")


async def _work(database: Database, placement: Placement) -> None:
    while not await placement.settle():
        continue
    try:
        async with database.write():
            pass
    except DBAPIError as exc:
        log.warning("watchdog.store_failed", detail=str(exc.orig))
