"""
Asking the peer for its consent to be sent to (RFC 7675), patiently.

aioice gives each question half a second, so that a path whose round trip takes that long loses its
connection after 30 s although nothing is wrong. Here a question is repeated for some seconds. That
a peer has vanished is found out by `liveness`, much earlier.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import structlog
from aioice import stun
from aioice.ice import CONSENT_FAILURES, CONSENT_INTERVAL, CandidatePair, Connection

REPEATS: Final = 3
"""After 0.5, 1 and 2 s; the last is given 4 s."""

_log = structlog.get_logger("aegis_links.consent")


async def query_consent(connection: Connection) -> None:
    """Ask every five seconds or so, until the connection is closed; close it without consent."""
    failures = 0
    while failures < CONSENT_FAILURES:
        await asyncio.sleep(CONSENT_INTERVAL * random.uniform(0.8, 1.2))  # noqa: S311  no secret
        for pair in list(connection._nominated.values()):
            failures = 0 if await _consents(connection, pair) else failures + 1
    _log.info("consent.expired")
    connection._query_consent_task = None
    await connection.close()


async def _consents(connection: Connection, pair: CandidatePair) -> bool:
    assert connection.remote_password is not None
    try:
        await pair.protocol.request(
            connection.build_request(pair, nominate=False),
            pair.remote_addr,
            integrity_key=connection.remote_password.encode(),
            retransmissions=REPEATS,
        )
    except stun.TransactionError:
        return False
    return True
