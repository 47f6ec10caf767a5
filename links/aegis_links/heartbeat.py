"""The heartbeat of a link: a ping when nothing else is sent, and the end of a silent peer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import PeerGone

from aegis_links.liveness import PING_AFTER_S, TICK_S, Liveness
from aegis_links.send_scheduler import SendScheduler
from aegis_links.transport import Transport

PING: Final = '{"jsonrpc":"2.0","method":"ping"}'


async def beat(transport: Transport, scheduler: SendScheduler, ended: asyncio.Event) -> None:
    """
    Ping when idle, until this side has `ended` the link or the connection is over.

    Raises PeerGone when the peer was silent for too long.
    """
    association, clock = transport.association, asyncio.get_running_loop().time
    liveness = Liveness(clock())
    while not ended.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await transport.ended.wait()
                return
        unacked_bytes = association.in_flight_bytes + scheduler.buffered_bytes
        if liveness.gone(
            clock(),
            heard_at_s=association.heard_at,
            acked_bytes=scheduler.handed_bytes - unacked_bytes,
            unacked_bytes=unacked_bytes,
        ):
            silence_s = round(clock() - association.heard_at, 1)
            raise PeerGone(f"The peer said nothing for {silence_s} s.", silence_s=silence_s)
        if clock() - scheduler.handed_at > PING_AFTER_S - TICK_S:
            await _ping(transport, scheduler)


async def _ping(transport: Transport, scheduler: SendScheduler) -> None:
    if not scheduler.send_now(ChannelName.ESPCTL, PING):
        with suppress(ConnectionError):
            await transport.association.knock()
