"""
The sending half of an association: what waits, what is on its way, and what is sent again.

Chunks are numbered from 1 in the order of their TSNs, and each sending of one has a serial
number. A chunk counts as missing when something that was sent after it arrived, so that one sent
again is not held to be lost by what had left before it.
"""

from __future__ import annotations

import asyncio
import heapq
import struct
from collections import deque
from typing import Final

import structlog
from aiortc import RTCDataChannel, RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    SCTP_MAX_ASSOCIATION_RETRANS,
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

from aegis_links.fast import gap_blocks, packets
from aegis_links.fast.congestion import SHORT_RTT_S, CongestionWindow, useful_bytes
from aegis_links.fast.receiving import EAGER_ON_SHORT_PATH, Breach, Receiving
from aegis_links.fast.sharing import Share, sharers
from aegis_links.fast.turns import LIGHT_BYTES, of_this_loop

RTO_INITIAL_S: Final = 1.0
MISSED_TIMES: Final = 3
MAX_IN_FLIGHT: Final = 8_192
"""Chunks, so that small ones have a bound too."""

_MOST_ROOM_BYTES: Final = 256 * 1024
_FEW_MESSAGES: Final = 8
_SACK: Final = struct.Struct("!LLHH")
_log = structlog.get_logger("aegis_links.fast")


class Outgoing:
    """A DATA chunk from the queue to its acknowledgment."""

    __slots__ = (
        "flags",
        "flies",
        "here",
        "misses",
        "number",
        "protocol",
        "sendings",
        "sent_at",
        "sequence",
        "serial",
        "stream_id",
        "user_data",
    )

    def __init__(
        self, flags: int, stream_id: int, sequence: int, protocol: int, user_data: bytes
    ) -> None:
        self.flags = flags
        self.stream_id = stream_id
        self.sequence = sequence
        self.protocol = protocol
        self.user_data = user_data
        self.number = 0
        self.serial = 0
        self.sendings = 0
        self.sent_at = 0.0
        self.misses = 0
        self.flies = False  # counted in the flight size
        self.here = False  # the peer has it, by a gap block


class Sending(Receiving):
    retransmission_limit = SCTP_MAX_ASSOCIATION_RETRANS
    """How often in a row nothing may come back before the association is given up."""

    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self._rto = RTO_INITIAL_S
        self._window = CongestionWindow()
        self._peer_window = 0
        self._first_tsn = self._local_tsn
        self._unsent: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._numbered = 0  # the number of the last chunk that was sent
        self._acked = 0  # the number up to which the peer has all
        self._serial = 0
        self._peer_gaps: list[gap_blocks.Block] = []
        self._again: list[int] = []  # a heap of numbers to be sent again
        self._recovers_at: int | None = None
        self._free_resend = False  # the first one of a recovery goes whatever the window says
        self._share = Share()
        self._turns = of_this_loop()
        self._waits_for_turn = False
        self._shortest_rtt_s = RTO_INITIAL_S
        self._peak_bytes = 0  # the largest flight since it was last looked at
        self._room_bytes = 0  # what acknowledgments have made room for, and nothing filled yet
        self._t3_failures = 0
        self._t3_at: float | None = None
        self._t3_fires_at = 0.0
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
        if state is not self.State.CLOSED:
            return
        self._share.idle()
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None

    # Queueing.

    def _queue_moved(self) -> None:
        """The send queue may have become shorter."""

    def _flush_soon(self) -> None:
        self._flush_handle = None
        self._flush_in_turn()

    def _flush_in_turn(self) -> None:
        if self._is_light():
            self._flush_now()
        elif not self._waits_for_turn:
            self._waits_for_turn = True
            self._turns.do(self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self._flush_now()

    def _is_light(self) -> bool:
        queue = self._data_channel_queue
        if self._unsent or self._again or len(queue) > _FEW_MESSAGES:
            return False
        return sum(len(content) for _, _, content in queue) <= LIGHT_BYTES

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

    def _update_rto(self, R: float) -> None:
        super()._update_rto(R)
        self._shortest_rtt_s = min(self._shortest_rtt_s, R)
        if R < SHORT_RTT_S:
            self._eager = min(self._eager, EAGER_ON_SHORT_PATH)

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

    def _tsn(self, number: int) -> int:
        return (self._first_tsn + number - 1) & packets.TSN_MASK

    # Acknowledgments.

    def _take_sack(self, body: bytes) -> None:
        tsn, window_bytes, gap_count, _ = _SACK.unpack_from(body)
        advance = (tsn - self._tsn(self._acked)) & packets.TSN_MASK
        if advance > self._numbered - self._acked:
            return  # an old one that was overtaken, or of what was never sent
        self._last_sacked_tsn = tsn
        self._peer_window = window_bytes
        newest, acked_bytes = self._acknowledge(advance)
        if gap_count or self._peer_gaps:
            blocks = self._read_gaps(body, gap_count)
            for span in gap_blocks.beyond(blocks, self._peer_gaps):
                for number in span:
                    chunk = self._sent[number]
                    chunk.here = True
                    acked_bytes += len(chunk.user_data)
                    newest = max(newest, chunk.serial)
                    self._lands(chunk)
            self._peer_gaps = blocks
            if newest:
                self._strike(blocks, newest)
        if advance or acked_bytes or window_bytes < FULL_BYTES:
            self._t3_failures = 0  # a peer without room is alive (RFC 9260 section 6.1 A)
        if acked_bytes:
            # Twice as much leaves as has arrived, at most: so slow start doubles each round.
            self._room_bytes = min(self._room_bytes + 2 * acked_bytes, _MOST_ROOM_BYTES)
        if self._recovers_at is None:
            if advance and self._window.was_used_by(self._peak_bytes):
                self._window.acknowledged(acked_bytes)
        elif self._acked >= self._recovers_at:
            self._recovers_at = None
        if advance:
            self._t3_at = self._own_loop.time() + self._rto if self._sent else None
            self._arm_t3()

    def _acknowledge(self, advance: int) -> tuple[int, int]:
        """Let go of the next `advance` chunks; return the newest serial and the bytes."""
        newest = acked_bytes = 0
        sampled_at: float | None = None
        take = self._sent.pop
        for number in range(self._acked + 1, self._acked + advance + 1):
            chunk = take(number)
            if chunk.here:
                continue
            acked_bytes += len(chunk.user_data)
            newest = max(newest, chunk.serial)
            if chunk.sendings == 1:  # Karn's rule
                sampled_at = chunk.sent_at
            self._lands(chunk)
        self._acked += advance
        if not self._sent:
            self._share.idle()
        if sampled_at is not None:
            self._update_rto(self._own_loop.time() - sampled_at)
        return newest, acked_bytes

    def _read_gaps(self, body: bytes, count: int) -> list[gap_blocks.Block]:
        """Return the gap blocks as numbers; none if they are not as they should be."""
        if _SACK.size + 4 * count > len(body):
            return self._peer_gaps
        blocks: list[gap_blocks.Block] = []
        before = self._acked + 1
        for first, last in struct.iter_unpack("!HH", body[_SACK.size : _SACK.size + 4 * count]):
            begin, end = self._acked + first, self._acked + last
            if not before < begin <= end <= self._numbered:
                return []
            blocks.append((begin, end))
            before = end + 1
        return blocks

    def _strike(self, blocks: list[gap_blocks.Block], newest: int) -> None:
        """Count what is missing although something that left later arrived."""
        for hole in gap_blocks.holes(blocks, self._acked + 1):
            for number in hole:
                chunk = self._sent[number]
                if not chunk.flies or chunk.serial > newest:
                    continue
                chunk.misses += 1
                if chunk.misses >= MISSED_TIMES:
                    self._lands(chunk)
                    heapq.heappush(self._again, number)
                    if self._recovers_at is None:
                        self._window.lost()
                        self._recovers_at = self._numbered
                        self._free_resend = True

    def _lands(self, chunk: Outgoing) -> None:
        if chunk.flies:
            chunk.flies = False
            self._flight_size -= len(chunk.user_data)

    # Timers. T3 is one timer that looks at its deadline when it fires: moving it costs nothing.

    def _arm_t3(self) -> None:
        if self._t3_at is None or (self._t3_handle and self._t3_fires_at <= self._t3_at):
            return
        if self._t3_handle is not None:  # after a back-off the new deadline may be the earlier one
            self._t3_handle.cancel()
        self._t3_fires_at = self._t3_at
        self._t3_handle = self._own_loop.call_at(self._t3_at, self._t3_expired)

    def _t3_expired(self) -> None:
        self._t3_handle = None
        if self._t3_at is None or not self._sent:
            self._t3_at = None
            return
        if self._t3_at > self._own_loop.time() + 1e-3:
            self._arm_t3()
            return
        self._t3_failures += 1
        if self._t3_failures > self.retransmission_limit:
            _log.warning("association.gave_up", failures=self._t3_failures)
            self._break_off(Breach.SILENCE)
            return
        self._rto = min(2 * self._rto, SCTP_RTO_MAX)
        self._t3_at = self._own_loop.time() + self._rto
        self._window.timed_out()
        self._recovers_at = None
        # All of it, also what the peer had reported: it may have thrown that away.
        self._peer_gaps = []
        for chunk in self._sent.values():
            chunk.here = False
            self._lands(chunk)
        self._again = sorted(self._sent)
        self._arm_t3()
        self._flush_now()

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
