"""aiortc's SCTP transport with both fast halves."""

from __future__ import annotations

from typing import Final

from aiortc import RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import (
    Chunk,
    HeartbeatAckChunk,
    HeartbeatChunk,
    InitChunk,
    serialize_packet,
    tsn_minus_one,
)

from aegis_links.fast import early_setup
from aegis_links.fast.sending import Sending

_HEARTBEAT_INFO: Final = 1  # RFC 9260 section 3.3.6
_PROBE: Final = b"probe"


class FastSctp(Sending):
    """
    Takes the place of RTCSctpTransport over a FastDtls; the peer may be anybody's.

    Channels are reliable: `maxRetransmits` and `maxPacketLifeTime` of a channel are not heeded,
    and the peer is told so when the association is set up (RFC 3758 section 3.3.1).
    """

    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self._agreed: InitChunk | None = None
        self._probed_at: float | None = None

    @property
    def early_init(self) -> str:
        """What stands in this side's description so that the peer can do without set-up."""
        chunk = InitChunk()
        chunk.initiate_tag = self._local_verification_tag
        chunk.advertised_rwnd = self._advertised_rwnd
        chunk.outbound_streams = self._outbound_streams_count
        chunk.inbound_streams = self._inbound_streams_max
        chunk.initial_tsn = self._local_tsn
        self._set_extensions(chunk.params)
        return early_setup.written(chunk)

    def agree(self, peer_init: str) -> bool:
        """Do without set-up if this is what the peer's description has; before `start`."""
        self._agreed = early_setup.read(peer_init)
        return self._agreed is not None

    async def _init(self) -> None:
        chunk = self._agreed
        if chunk is None:
            await super()._init()
            return
        self._last_received_tsn = tsn_minus_one(chunk.initial_tsn)
        self._reconfig_response_seq = tsn_minus_one(chunk.initial_tsn)
        self._remote_verification_tag = chunk.initiate_tag
        self._peer_window = chunk.advertised_rwnd
        self._get_extensions(chunk.params)
        self._inbound_streams_count = min(chunk.outbound_streams, self._inbound_streams_max)
        self._outbound_streams_count = min(self._outbound_streams_count, chunk.inbound_streams)
        self._set_state(self.State.ESTABLISHED)

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        begins = state is self.State.ESTABLISHED and self._association_state is not state
        super()._set_state(state)
        if begins:
            self._probe()

    async def _receive_chunk(self, chunk: Chunk) -> None:
        await super()._receive_chunk(chunk)
        if not isinstance(chunk, HeartbeatAckChunk) or self._probed_at is None:
            return
        if (_HEARTBEAT_INFO, _PROBE) in chunk.params:
            self._update_rto(self._own_loop.time() - self._probed_at)
            self._probed_at = None

    def _probe(self) -> None:
        """Measure the round trip before there is data to measure it by (RFC 9260 section 8.3)."""
        heartbeat = HeartbeatChunk()
        heartbeat.params.append((_HEARTBEAT_INFO, _PROBE))
        assert self._remote_port is not None
        self._probed_at = self._own_loop.time()
        packet = serialize_packet(
            self._local_port, self._remote_port, self._remote_verification_tag, heartbeat
        )
        self._dispatch((packet,))
