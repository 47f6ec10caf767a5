"""
How fast a link is, measured with `link.measure`: round trips, and bytes each way.

The bytes are the text of messages on `espctl`: they pass the same queue, encryption and network as
files do, but no disk. The clock is not the loop's, which may stand still for a millisecond.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from aegis_protocol.rpc import MAX_MEASURE_BYTES, LinkMeasureParams, LinkMeasureResult

from aegis_client.connection import Connection

ROUNDS: Final = 10
AT_ONCE: Final = 16
MOST_BYTES: Final = 4 * 1024 * 1024
LIMIT_S: Final = 4.0

Way = Literal["up", "down"]


@dataclass(frozen=True)
class Rate:
    """What was carried, and in what time."""

    size_bytes: int
    took_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.took_s if self.took_s > 0 else 0.0


async def round_trip_s(connection: Connection) -> float:
    """The median of ROUNDS questions, one after the other."""
    took_s = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        await connection.call("link.measure", LinkMeasureParams(), LinkMeasureResult)
        took_s.append(time.monotonic() - began)
    return median(took_s)


async def rate(connection: Connection, way: Way) -> Rate:
    """Carry up to MOST_BYTES for LIMIT_S at most, `up` to the agent or `down` from it."""
    if way == "up":
        params = LinkMeasureParams(data="0" * MAX_MEASURE_BYTES)
    else:
        params = LinkMeasureParams(reply_bytes=MAX_MEASURE_BYTES)
    began = time.monotonic()
    left, carried, last = MOST_BYTES // MAX_MEASURE_BYTES, 0, began

    async def carry() -> None:
        nonlocal left, carried, last
        while left > 0:
            left -= 1
            await connection.call("link.measure", params, LinkMeasureResult)
            carried, last = carried + MAX_MEASURE_BYTES, time.monotonic()

    carriers = [asyncio.create_task(carry(), name=f"measure-{n}") for n in range(AT_ONCE)]
    try:
        done, _ = await asyncio.wait(carriers, timeout=LIMIT_S, return_when=asyncio.FIRST_EXCEPTION)
        for carrier in done:
            carrier.result()
    finally:
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)
    return Rate(carried, last - began)
