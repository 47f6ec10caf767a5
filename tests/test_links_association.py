"""The bounds that a link sets to what its peer makes it keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aegis_links.association import (
    MAX_INBOUND_STREAMS,
    MAX_REASSEMBLY_BYTES,
    AssociationEars,
    FastAssociation,
)
from aegis_links.fast import packets
from aiortc.rtcsctptransport import SCTP_DATA_FIRST_FRAG, RTCSctpCapabilities
from wired_associations import PORT, Wire

_BINARY = 53


@asynccontextmanager
async def association() -> AsyncIterator[tuple[FastAssociation, list[str]]]:
    """An association whose peer the test is, and what it says of floods."""
    floods: list[str] = []
    ears = AssociationEars(flushed=lambda: None, flooded=floods.append)
    found, peer = (
        FastAssociation(Wire(role), ears, asyncio.Event()) for role in ("server", "client")
    )
    assert found.agree(peer.early_init)
    await found.start(RTCSctpCapabilities(maxMessageSize=65536), PORT)
    try:
        yield found, floods
    finally:
        await found.stop()


async def begins(found: FastAssociation, stream_id: int, size_bytes: int) -> None:
    """The next packet is the beginning of a message of that stream, which never ends."""
    wire = packets.Association(PORT, PORT, found._local_verification_tag)
    assert found._last_received_tsn is not None
    tsn = (found._last_received_tsn + 1) & packets.TSN_MASK
    flags = SCTP_DATA_FIRST_FRAG if size_bytes == 1 else 0
    await found.take_packets([wire.data(flags, tsn, stream_id, 0, _BINARY, bytes(size_bytes))])


@pytest.mark.timeout(30)
async def test_a_peer_that_sends_on_streams_without_end_floods() -> None:
    async with association() as (found, floods):
        for stream_id in range(MAX_INBOUND_STREAMS):
            await begins(found, stream_id, 1)
        assert floods == []
        for stream_id in range(MAX_INBOUND_STREAMS, MAX_INBOUND_STREAMS + 5):
            await begins(found, stream_id, 1)
        assert "more streams" in floods[0]


@pytest.mark.timeout(30)
async def test_a_peer_that_ignores_the_window_with_a_message_that_never_ends_floods() -> None:
    async with association() as (found, floods):
        window_bytes = found._advertised_rwnd
        await begins(found, 7, 1)
        for _ in range((window_bytes + MAX_REASSEMBLY_BYTES) // 60_000):
            await begins(found, 7, 60_000)
        assert floods == []
        for _ in range(5):
            await begins(found, 7, 60_000)
        assert "never end" in floods[0]
