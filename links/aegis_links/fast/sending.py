"""The sending half of an association: what waits, and what leaves, once or again."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Final

from aiortc import RTCDataChannel, RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    SCTP_MAX_INIT_RETRANS,
    SCTP_RTO_MAX,
    WEBRTC_BINARY,
    WEBRTC_BINARY_EMPTY,
    WEBRTC_STRING,
    WEBRTC_STRING_EMPTY,
    Chunk,
    InitAckChunk,
    InitChunk,
    SackChunk,
    serialize_packet,
)
from aiortc.rtcsctptransport import USERDATA_MAX_LENGTH as FULL_BYTES

from aegis_links.fast.congestion import useful_bytes
from aegis_links.fast.outgoing import Outgoing
from aegis_links.fast.recovering import Recovering
from aegis_links.fast.sharing import sharers
from aegis_links.fast.turns import LIGHT_BYTES, of_this_loop

MAX_IN_FLIGHT: Final = 8_192
"""Chunks, so that small ones have a bound too."""

_FEW_MESSAGES: Final = 8


class Sending(Recovering):
    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self._unsent: deque[Outgoing] = deque()
        self._serial = 0
        self._seat = of_this_loop().seat()
        self._waits_for_turn = False
        self._flushing = False
        self._flush_handle: asyncio.Handle | None = None

    @property
    def in_flight_bytes(self) -> int:
        """What was taken from the send queue and is not acknowledged yet."""
        return self._flight_size + sum(len(chunk.user_data) for chunk in self._unsent)

    @property
    def delivered(self) -> bool:
        """Whether the peer has acknowledged everything that was ever queued."""
        return not (self._data_channel_queue or self._unsent or self._sent)

    # What aiortc's own code calls.

    async def _receive_chunk(self, chunk: Chunk) -> None:
        await super()._receive_chunk(chunk)
        if isinstance(chunk, InitChunk | InitAckChunk) and not self._numbered:
            self._peer_window = chunk.advertised_rwnd

    async def _receive_sack_chunk(self, chunk: SackChunk) -> None:
        self._take_sack(bytes(chunk)[4:])

    async def _transmit(self) -> None:
        self._flush_now()

    async def _data_channel_flush(self) -> None:
        self._flush_now()
        await self._transmit_reconfig()

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if isinstance(data, str):
            kind, content = WEBRTC_STRING, data.encode()
        else:
            kind, content = WEBRTC_BINARY, data
        if not content:
            kind = WEBRTC_STRING_EMPTY if isinstance(data, str) else WEBRTC_BINARY_EMPTY
            content = b"\0"
        if 0 < self._remote_max_message_size < len(content):
            raise ValueError(
                f"Cannot send message of {len(content)} bytes, the remote party "
                f"only supports messages up to {self._remote_max_message_size} bytes"
            )
        channel._addBufferedAmount(len(content))
        self._data_channel_queue.append((channel, kind, content))
        if self._flush_handle is None and not self._flushing:
            self._flush_handle = self._own_loop.call_soon(self._flush_soon)

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is self.State.CLOSED and self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None

    # Queueing.

    def _queue_moved(self) -> None:
        """The send queue may have become shorter."""

    def _flush_soon(self) -> None:
        self._flush_handle = None
        self._flush_in_turn()

    def _flush_in_turn(self) -> None:
        if not (self._data_channel_queue or self._unsent or self._again or self._reconfig_queue):
            self._queue_moved()
        elif self._is_light():
            self._flush_now()
        else:
            if not self._waits_for_turn:
                self._waits_for_turn = True
                self._seat.do(self._take_turn)
            if self._waits_for_turn and self._has_small():
                self._seat.hurry()

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self._flush_now()

    def _is_light(self) -> bool:
        queue = self._data_channel_queue
        if self._unsent or self._again or len(queue) > _FEW_MESSAGES:
            return False
        return sum(len(content) for _, _, content in queue) <= LIGHT_BYTES

    def _has_small(self) -> bool:
        return any(len(content) <= LIGHT_BYTES for _, _, content in self._data_channel_queue)

    def _flush_now(self) -> None:
        if self._flushing or self._association_state is not self.State.ESTABLISHED:
            return
        self._flushing = True
        self._peak_bytes = 0
        limit_bytes = self._limit_bytes()
        try:
            while True:
                while self._data_channel_queue and not self._unsent:
                    self._take_message()
                self._transmit_up_to(limit_bytes)
                if self._unsent:
                    break
                self._queue_moved()
                if not self._data_channel_queue:
                    break
        finally:
            self._flushing = False
        self._queue_moved()
        if self._reconfig_queue and self._reconfig_request is None:
            # A stream's end waits for its messages, which may have left just now.
            asyncio.ensure_future(self._transmit_reconfig())  # noqa: RUF006  ends in one step

    def _take_message(self) -> None:
        channel, protocol, content = self._data_channel_queue.popleft()
        stream_id = channel.id
        if stream_id is None:
            assert self._data_channel_id is not None
            stream_id = self._data_channel_id
            while stream_id in self._data_channels:
                stream_id += 2
            self._data_channels[stream_id] = channel
            channel._setId(stream_id)
        is_announcement = protocol not in _CONTENT
        ordered = is_announcement or channel.ordered
        sequence = self._outbound_stream_seq.get(stream_id, 0) if ordered else 0
        flags = SCTP_DATA_FIRST_FRAG | (0 if ordered else SCTP_DATA_UNORDERED)
        put, last = self._unsent.append, len(content) - FULL_BYTES
        for start in range(0, len(content), FULL_BYTES):
            if start >= last:
                flags |= SCTP_DATA_LAST_FRAG
            put(Outgoing(flags, stream_id, sequence, protocol, content[start : start + FULL_BYTES]))
            flags &= ~SCTP_DATA_FIRST_FRAG
        if ordered:
            self._outbound_stream_seq[stream_id] = (sequence + 1) & 0xFFFF
        if not is_announcement:
            channel._addBufferedAmount(-len(content))
        # Stream resets name the last TSN that was given away.
        self._local_tsn = self._tsn(self._numbered + len(self._unsent) + 1)

    # Transmitting.

    def _limit_bytes(self) -> int:
        """How large the flight may become now."""
        burst_bytes = max(self._window.burst_bytes, self._room_bytes)
        return min(
            self._window.size_bytes,
            self._flight_size + burst_bytes,
            useful_bytes(self._shortest_rtt_s, sharers()),
        )

    def _transmit_up_to(self, limit_bytes: int) -> None:
        batch: list[bytes] = []
        now = self._own_loop.time()
        while self._again:
            chunk = self._sent.get(self._again[0])
            if chunk is None or chunk.here or chunk.flies:
                heapq.heappop(self._again)
                continue
            if self._flight_size >= limit_bytes and not self._free_resend:
                break
            heapq.heappop(self._again)
            self._free_resend = False
            if chunk.number == self._acked + 1:
                self._t3_at = now + self._rto  # RFC 9260 section 6.3.2 R4
            self._launch(chunk, now, batch)
        else:
            self._transmit_waiting(limit_bytes, now, batch)
        self._peak_bytes = max(self._peak_bytes, self._flight_size)
        if batch:
            self._share.busy()
            if self._t3_at is None:
                self._t3_at = now + self._rto
            self._arm_t3()
            if not self._t3_failures:
                self._tail.expect(self._srtt, self._rttvar)
            self._dispatch(batch)

    def _probe_tail(self) -> None:
        established = self._association_state is self.State.ESTABLISHED
        if not established or self._peer_window < FULL_BYTES:
            return  # whether there is room again the retransmission timer finds out
        batch: list[bytes] = []
        now = self._own_loop.time()
        self._transmit_waiting(self._flight_size + 1, now, batch)
        if not batch:
            last = next((chunk for chunk in reversed(self._sent.values()) if chunk.flies), None)
            if last is None:
                return
            self._lands(last)
            self._launch(last, now, batch)
            self._tail.asked(last)
        else:
            self._tail.asked(self._sent[self._numbered])
        self._t3_at = now + self._rto
        self._arm_t3()
        self._dispatch(batch)

    def _transmit_waiting(self, limit_bytes: int, now: float, batch: list[bytes]) -> None:
        waiting, sent = self._unsent, self._sent
        while waiting and self._flight_size < limit_bytes and len(sent) < MAX_IN_FLIGHT:
            size_bytes = len(waiting[0].user_data)
            if sent and self._flight_size + size_bytes > self._peer_window:
                break  # with nothing in flight, one chunk finds out whether there is room again
            chunk = waiting.popleft()
            self._numbered += 1
            chunk.number = self._numbered
            sent[chunk.number] = chunk
            self._launch(chunk, now, batch)

    def _launch(self, chunk: Outgoing, now: float, batch: list[bytes]) -> None:
        self._serial += 1
        chunk.serial = self._serial
        chunk.sendings += 1
        chunk.sent_at = now
        chunk.misses = 0
        chunk.flies = True
        size_bytes = len(chunk.user_data)
        self._flight_size += size_bytes
        self._room_bytes = max(0, self._room_bytes - size_bytes)
        batch.append(
            self._wire().data(
                chunk.flags,
                self._tsn(chunk.number),
                chunk.stream_id,
                chunk.sequence,
                chunk.protocol,
                chunk.user_data,
            )
        )

    def _t1_expired(self) -> None:
        self._t1_handle = None
        self._t1_failures += 1
        if self._t1_failures > SCTP_MAX_INIT_RETRANS or self._t1_chunk is None:
            self._set_state(self.State.CLOSED)
            return
        assert self._remote_port is not None
        packet = serialize_packet(
            self._local_port, self._remote_port, self._remote_verification_tag, self._t1_chunk
        )
        self._dispatch((packet,))
        delay_s = min(self._rto * 2**self._t1_failures, SCTP_RTO_MAX)
        self._t1_handle = self._own_loop.call_later(delay_s, self._t1_expired)


_CONTENT: Final = frozenset(
    {WEBRTC_BINARY, WEBRTC_BINARY_EMPTY, WEBRTC_STRING, WEBRTC_STRING_EMPTY}
)
