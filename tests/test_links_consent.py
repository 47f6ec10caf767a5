"""Consent to be sent to (RFC 7675): patient with slow paths, and over where nobody gives it."""

from __future__ import annotations

import asyncio
import time

import pytest
from aegis_links import consent
from aegis_protocol.failures.link import PeerGone
from aioice.ice import CONSENT_FAILURES, StunProtocol
from aioice.stun import TransactionTimeout
from bench.udp_path import UdpPath
from linked_peers import linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(60)


async def test_a_question_whose_answer_takes_longer_than_half_a_second_is_not_given_up() -> None:
    async with UdpPath.through() as path, linked_peers(path=path) as peers:
        connection = peers.client._transport._ice._connection
        (pair,) = connection._nominated.values()
        path.blocked = True
        asked = asyncio.create_task(consent._consents(connection, pair))
        began = time.monotonic()
        # Beyond the time of aioice's one question, and before ours are all asked.
        await until(lambda: time.monotonic() - began > 1.0)
        assert not asked.done()
        path.blocked = False
        assert await asyncio.wait_for(asked, 10)


async def test_a_link_without_consent_is_gone_although_it_is_not_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consent, "CONSENT_INTERVAL", 0.05)
    asked = 0

    async with linked_peers() as peers:
        connection = peers.client._transport._ice._connection
        (pair,) = connection._nominated.values()
        request = StunProtocol.request

        async def unheard(protocol: StunProtocol, *question: object, **how: object) -> object:
            nonlocal asked
            if protocol is pair.protocol:
                asked += 1
                raise TransactionTimeout
            return await request(protocol, *question, **how)  # type: ignore[arg-type]

        monkeypatch.setattr(StunProtocol, "request", unheard)
        assert connection._query_consent_task is not None
        connection._query_consent_task.cancel()
        connection._query_consent_task = asyncio.create_task(connection.query_consent())
        began = time.monotonic()
        error = await peers.client.wait_closed()
        assert isinstance(error, PeerGone) and "network path" in error.message
        assert time.monotonic() - began < 5, "long before silence would have told"
        assert asked == CONSENT_FAILURES
