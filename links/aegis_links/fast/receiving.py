"""
The receiving half of an association: what came, in which order, and what to tell the sender.

One SACK answers each packet at the start of an association (on a short path a few, on a long one
many), and while something is missing and a while after: the window of many a sender grows by SACKs
then. Later one answers each batch that the event
loop hands over, or every second packet, or a lone packet after 20 ms (RFC 9260 section 6.2).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from enum import Enum
from typing import Final

import structlog
from aiortc import RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import Chunk, DataChunk, ForwardTsnChunk, InboundStream, InitChunk

from aegis_links.fast import packets
from aegis_links.fast.dtls import FastDtls
from aegis_links.fast.gap_blocks import Block, insert
from aegis_links.fast.inbound_stream import FastInboundStream, Message, OutOfOrder

SACK_DELAY_S: Final = 0.020
SACK_EVERY_PACKETS: Final = 16
"""Within a batch."""
EAGER_AT_START: Final = 2_000
EAGER_ON_SHORT_PATH: Final = 64
"""There a window that grows slowly is soon large enough, and acknowledging is what costs most."""
EAGER_AFTER_GAP: Final = 256
MAX_HELD_FRAGMENTS: Final = 16_384

_MAX_AHEAD: Final = 0xFFFF  # a gap block has 16 bits
_HALF: Final = 0x8000_0000
_MAX_TWICE: Final = 16
_DATA: Final = struct.Struct("!LHHL")
_log = structlog.get_logger("aegis_links.fast")


class Breach(Enum):
    """Why an association was ended by this side."""

    NONSENSE = "The peer sent something that breaks the protocol."
    SILENCE = "The peer acknowledges nothing."


class Receiving(RTCSctpTransport):
    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self.breach: Breach | None = None
        self._own_loop = asyncio.get_running_loop()
        # Channels of ours are never lossy: nobody needs to skip what was abandoned.
        self._local_partial_reliability = False
        self._tag = struct.pack("!L", self._local_verification_tag)
        self._gaps: list[Block] = []  # how far ahead of the last TSN in order
        self._unreported = 0  # packets since the last SACK
        self._eager = EAGER_AT_START
        self._held = 0
        self._sack_handle: asyncio.TimerHandle | None = None
        self._sacks: list[bytes] = []
        self._wire_tag = 0
        self._wire_made: packets.Association | None = None

    async def take_packets(self, batch: Sequence[bytes]) -> None:
        """Handle decrypted packets. Nothing that a peer can send makes this raise."""
        try:
            for packet in batch:
                if packet[4:8] == self._tag and (chunks := packets.plain_chunks(packet)):
                    if packets.is_sound(packet):
                        await self._take_chunks(packet, chunks)
                else:
                    await super()._handle_data(packet)
        except ConnectionError:
            return  # the way to the peer is gone, which DTLS tells
        except (AssertionError, LookupError, ValueError, TypeError, struct.error) as exc:
            _log.warning("association.broken", error=repr(exc))
            self._break_off(Breach.NONSENSE)
            return
        self._report()
        self._flush_in_turn()

    def _break_off(self, why: Breach) -> None:
        if self.breach is None and self._association_state is not self.State.CLOSED:
            self.breach = why
            self._set_state(self.State.CLOSED)

    def _flooded_by_peer(self, reason: str) -> None:
        self._break_off(Breach.NONSENSE)

    def _flush_in_turn(self) -> None:
        """Send what may be sent; the other half's."""
        raise TypeError("this is half of an association")

    def _take_sack(self, body: bytes) -> None:
        """Take the body of a SACK; the other half's."""
        raise TypeError("this is half of an association")

    def _dtls(self) -> FastDtls:
        transport = self.transport
        assert isinstance(transport, FastDtls)
        return transport

    # What aiortc's own code calls.

    async def _handle_data(self, data: bytes) -> None:
        await self.take_packets((data,))

    async def _receive_chunk(self, chunk: Chunk) -> None:
        if isinstance(chunk, ForwardTsnChunk):
            return  # we did not offer it
        if isinstance(chunk, InitChunk) and self._inbound_streams:
            # A late copy must not set the counters back (RFC 9260 section 5.2.2).
            kept = self._last_received_tsn, self._reconfig_response_seq
            kept_tag = self._remote_verification_tag
            await super()._receive_chunk(chunk)
            self._last_received_tsn, self._reconfig_response_seq = kept
            self._remote_verification_tag = kept_tag
            return
        await super()._receive_chunk(chunk)

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        body = struct.pack("!LHHL", chunk.tsn, chunk.stream_id, chunk.stream_seq, chunk.protocol)
        for message in self._take_data(chunk.flags, body + chunk.user_data):
            await self._receive(*message)
        self._sack_needed = False
        self._unreported += 1

    def _get_inbound_stream(self, stream_id: int) -> InboundStream:
        if stream_id not in self._inbound_streams:
            self._inbound_streams[stream_id] = FastInboundStream()
        return self._inbound_streams[stream_id]

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is self.State.CLOSED and self._sack_handle is not None:
            self._sack_handle.cancel()
            self._sack_handle = None

    # Data.

    async def _take_chunks(
        self, packet: bytes, chunks: Sequence[tuple[int, int, int, int]]
    ) -> None:
        had_data = False
        for kind, flags, start, end in chunks:
            if kind == packets.SACK:
                self._take_sack(packet[start:end])
            elif self._last_received_tsn is not None:
                had_data = True
                for message in self._take_data(flags, packet[start:end]):
                    await self._receive(*message)
        if had_data:
            if self._reconfig_deferred is not None:
                await self._reset_deferred_streams()
            self._unreported += 1
            if self._eager or self._gaps:
                self._eager -= self._eager > 0
                self._add_sack()
            elif self._unreported >= SACK_EVERY_PACKETS:
                self._add_sack()

    def _take_data(self, flags: int, body: bytes) -> Sequence[Message]:
        tsn, stream_id, sequence, protocol = _DATA.unpack_from(body)
        assert self._last_received_tsn is not None
        ahead = (tsn - self._last_received_tsn) & packets.TSN_MASK
        if not self._arrived(ahead, tsn):
            return ()
        payload = body[_DATA.size :]
        stream = self._inbound_streams.get(stream_id)
        if stream is None or self._advertised_rwnd < 0:
            stream = self._get_inbound_stream(stream_id)
        assert isinstance(stream, FastInboundStream)
        held = stream.held
        messages: Sequence[Message]
        try:
            message = stream.take_in_order(flags, tsn, stream_id, sequence, protocol, payload)
            messages = () if message is None else ((stream_id, protocol, message),)
        except OutOfOrder:
            messages = tuple(stream.take(DataChunk(flags, body)))
        self._held += stream.held - held
        self._advertised_rwnd += sum(len(message[2]) for message in messages) - len(payload)
        if self._held > MAX_HELD_FRAGMENTS:
            self._flooded_by_peer("The peer sends fragments of messages that never end.")
        return messages

    def _arrived(self, ahead: int, tsn: int) -> bool:
        """Note a TSN; False for one that is here already, or too far away to be reported."""
        if ahead == 1:
            self._last_received_tsn = tsn
            if self._gaps:
                self._close_gap()
            return True
        if ahead == 0 or ahead >= _HALF:
            return self._came_twice(tsn)
        if ahead > _MAX_AHEAD or self._held >= MAX_HELD_FRAGMENTS:
            return False
        return insert(self._gaps, ahead) or self._came_twice(tsn)

    def _close_gap(self) -> None:
        # All distances are from the last TSN in order, which moved by one, or by a block more.
        first, last = self._gaps[0]
        step = last if first <= 2 else 1
        assert self._last_received_tsn is not None
        self._last_received_tsn = (self._last_received_tsn + step - 1) & packets.TSN_MASK
        rest = self._gaps[1:] if step > 1 else self._gaps
        self._gaps = [(start - step, end - step) for start, end in rest]
        self._eager = max(self._eager, EAGER_AFTER_GAP)

    def _came_twice(self, tsn: int) -> bool:
        if len(self._sack_duplicates) < _MAX_TWICE:
            self._sack_duplicates.append(tsn)
        self._eager = max(self._eager, 1)  # our SACK may have been lost: say it again at once
        return False

    # Acknowledging.

    def _report(self) -> None:
        """Send the SACKs of this batch, or remember that one is due."""
        if self._unreported >= 2:
            self._add_sack()
        elif self._unreported and self._sack_handle is None:
            self._sack_handle = self._own_loop.call_later(SACK_DELAY_S, self._sack_is_due)
        if self._sacks:
            sacks, self._sacks = self._sacks, []
            if self._association_state is not self.State.CLOSED:
                self._dispatch(sacks)

    def _sack_is_due(self) -> None:
        self._sack_handle = None
        if self._unreported:
            self._add_sack()
            self._report()

    def _add_sack(self) -> None:
        assert self._last_received_tsn is not None
        self._sacks.append(
            self._wire().sack(
                self._last_received_tsn,
                max(0, self._advertised_rwnd),
                self._gaps[: packets.MAX_GAP_BLOCKS],
                self._sack_duplicates,
            )
        )
        self._sack_duplicates.clear()
        self._unreported = 0

    def _dispatch(self, batch: Sequence[bytes]) -> None:
        """Send packets; without a way to the peer they are lost, as on any network."""
        try:
            self._dtls().send_packets(batch)
        except ConnectionError:
            _log.debug("packets.dropped", count=len(batch))

    def _wire(self) -> packets.Association:
        if self._wire_made is None or self._wire_tag != self._remote_verification_tag:
            assert self._remote_port is not None
            self._wire_tag = self._remote_verification_tag
            self._wire_made = packets.Association(
                self._local_port, self._remote_port, self._wire_tag
            )
        return self._wire_made
