"""
Gathering by ICE: this machine's own addresses, and what a STUN server sees of them.

aioice opens a socket for each address, one after the other, and takes note of them when all are
there: canceled in between, it would leave those that were open already. And it would leave its
questions to the STUN server, which no closed socket can ever hear answered.
"""

from __future__ import annotations

import asyncio
import ipaddress

from aioice import Candidate
from aioice.ice import Connection, server_reflexive_candidate

from aegis_links.uninterrupted import uninterrupted


async def gathered(
    connection: Connection,
    stun: tuple[str, int] | None,
    component: int,
    addresses: list[str],
    timeout: int = 5,
) -> list[Candidate]:
    """
    Takes the place of `Connection.get_component_candidates`.

    stun  host and port of the server to ask; IPv4 alone is asked for
    """
    hosts = await uninterrupted(  # no step of it waits for anybody
        Connection.get_component_candidates(connection, component, addresses)
    )
    return hosts if stun is None else hosts + await _seen_by(stun, connection, timeout)


async def _seen_by(
    stun: tuple[str, int], connection: Connection, limit_s: float
) -> list[Candidate]:
    asking = [
        asyncio.ensure_future(server_reflexive_candidate(protocol, stun))
        for protocol in connection._protocols
        if protocol.local_candidate.type == "host"
        and ipaddress.ip_address(protocol.local_candidate.host).version == 4
    ]
    if not asking:
        return []
    try:
        await asyncio.wait(asking, timeout=limit_s)
    finally:
        for asked in asking:
            asked.cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)
    return [answer[0] for answer in answers if not isinstance(answer, BaseException)]
