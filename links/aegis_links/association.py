"""
The SCTP association of a link: aiortc's, with ears and with bounds, on the fast path or without.

What is added: when the peer was last heard, how much is on its way, a word each time the send
queue moved, and an end to a peer that makes us keep fragments without limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aegis_protocol.channels import MAX_MESSAGE_BYTES
from aiortc import RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import HeartbeatChunk, InboundStream, RTCSctpCapabilities

from aegis_links.fast.receiving import Breach
from aegis_links.fast.sctp import FastSctp

MAX_INBOUND_STREAMS: Final = 1_024
MAX_REASSEMBLY_BYTES: Final = 2 * 1024 * 1024
"""Twice the receive window that is announced; only a peer that ignores it gets there."""

_HEARTBEAT_INFO: Final = 1  # RFC 9260 section 3.3.6


@dataclass(frozen=True)
class AssociationEars:
    """
    Whom an association tells. All are called from the event loop and must not raise.

    flushed   the send queue may have become shorter, or what was in flight has arrived
    flooded   the peer made us keep more than it may; the reason in words
    """

    flushed: Callable[[], None]
    flooded: Callable[[str], None]


class Association(RTCSctpTransport):
    """ended: set when the association is over, or never came about."""

    def __init__(
        self, transport: RTCDtlsTransport, ears: AssociationEars, ended: asyncio.Event
    ) -> None:
        super().__init__(transport)
        self.established = asyncio.Event()
        self._over = ended
        self._clock = asyncio.get_running_loop().time
        self.heard_at = self._clock()
        """When the peer last said anything, in the loop's time."""
        self.shortest_rtt_s: float | None = None
        """The path without its queues: under load the smoothed time is mostly our own queue."""
        self._ears = ears

    @classmethod
    def getCapabilities(cls) -> RTCSctpCapabilities:
        return RTCSctpCapabilities(maxMessageSize=MAX_MESSAGE_BYTES)

    @property
    def in_flight_bytes(self) -> int:
        """What was taken from the send queue and is not acknowledged yet."""
        return self._flight_size + sum(len(chunk.user_data) for chunk in self._outbound_queue)

    @property
    def delivered(self) -> bool:
        """Whether the peer has acknowledged everything that was ever queued."""
        return not (self._data_channel_queue or self._outbound_queue or self._sent_queue)

    @property
    def broken_by(self) -> Breach | None:
        """What the peer did or left undone, where this side ended the association for it."""
        return None

    @property
    def rtt_s(self) -> float | None:
        """The smoothed round-trip time; None before the first data was acknowledged."""
        return self._srtt

    @property
    def early_init(self) -> str:
        """What a description says so that SCTP's set-up is done with it; empty: aiortc can't."""
        return ""

    def agree(self, peer_init: str) -> bool:
        """Do without SCTP's set-up if the peer's description says how; tell whether it does."""
        return False

    async def knock(self) -> None:
        """Ask the peer's transport for a sign of life (RFC 9260 section 8.3)."""
        chunk = HeartbeatChunk()
        chunk.params.append((_HEARTBEAT_INFO, b"aegis"))
        await self._send_chunk(chunk)

    async def _handle_data(self, data: bytes) -> None:
        self.heard_at = self._clock()
        await super()._handle_data(data)

    async def _data_channel_flush(self) -> None:
        await super()._data_channel_flush()
        self._ears.flushed()

    def _update_rto(self, R: float) -> None:
        super()._update_rto(R)
        self.shortest_rtt_s = R if self.shortest_rtt_s is None else min(R, self.shortest_rtt_s)

    def _get_inbound_stream(self, stream_id: int) -> InboundStream:
        if -self._advertised_rwnd > MAX_REASSEMBLY_BYTES:
            self._ears.flooded("The peer sends fragments of messages that never end.")
        elif len(self._inbound_streams) > MAX_INBOUND_STREAMS:
            self._ears.flooded("The peer sends on more streams than it may.")
        return super()._get_inbound_stream(stream_id)

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state == self.State.ESTABLISHED:
            self.established.set()
        elif state == self.State.CLOSED:
            self._over.set()


class FastAssociation(Association, FastSctp):
    """The same over a FastDtls."""

    @property
    def in_flight_bytes(self) -> int:
        return super(Association, self).in_flight_bytes

    @property
    def delivered(self) -> bool:
        return super(Association, self).delivered

    @property
    def broken_by(self) -> Breach | None:
        return self.breach

    @property
    def early_init(self) -> str:
        return super(Association, self).early_init

    def agree(self, peer_init: str) -> bool:
        return super(Association, self).agree(peer_init)

    async def take_packets(self, batch: Sequence[bytes]) -> None:
        self.heard_at = self._clock()
        await super().take_packets(batch)

    def _queue_moved(self) -> None:
        self._ears.flushed()

    def _flooded_by_peer(self, reason: str) -> None:
        self._ears.flooded(reason)
