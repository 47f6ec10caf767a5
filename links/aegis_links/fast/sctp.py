"""aiortc's SCTP transport with both fast halves."""

from __future__ import annotations

from aiortc import RTCDtlsTransport
from aiortc.rtcsctptransport import InitChunk, tsn_minus_one

from aegis_links.fast import early_setup
from aegis_links.fast.sending import Sending


class FastSctp(Sending):
    """
    Takes the place of RTCSctpTransport over a FastDtls; the peer may be anybody's.

    Channels are reliable: `maxRetransmits` and `maxPacketLifeTime` of a channel are not heeded,
    and the peer is told so when the association is set up (RFC 3758 section 3.3.1).
    """

    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self._agreed: InitChunk | None = None

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
