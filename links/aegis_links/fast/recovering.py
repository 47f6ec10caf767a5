"""
What comes back of what was sent: acknowledgments, what they show to be missing, and silence.

Chunks are numbered from 1 in the order of their TSNs, and each sending of one has a serial
number. A chunk counts as missing when something that was sent after it arrived, so that one sent
again is not held to be lost by what had left before it. After three reports of that it is lost, or
at the first if a whole round trip lay between the two; or as much later as the path is known to
bring things out of order.
"""

from __future__ import annotations

import asyncio
import heapq
import struct
from typing import Final

import structlog
from aiortc import RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import SCTP_MAX_ASSOCIATION_RETRANS, SCTP_RTO_MAX
from aiortc.rtcsctptransport import USERDATA_MAX_LENGTH as FULL_BYTES

from aegis_links.fast import gap_blocks, packets
from aegis_links.fast.congestion import SHORT_RTT_S, CongestionWindow
from aegis_links.fast.outgoing import Outgoing
from aegis_links.fast.receiving import EAGER_ON_SHORT_PATH, Breach, Receiving
from aegis_links.fast.reordering import Reordering
from aegis_links.fast.sharing import Share
from aegis_links.fast.tail_loss import TailProbe

RTO_INITIAL_S: Final = 1.0
MISSED_TIMES: Final = 3

_MOST_ROOM_BYTES: Final = 256 * 1024
_SACK: Final = struct.Struct("!LLHH")
_log = structlog.get_logger("aegis_links.fast")


class Recovering(Receiving):
    retransmission_limit = SCTP_MAX_ASSOCIATION_RETRANS
    """How often in a row nothing may come back before the association is given up."""

    def __init__(self, transport: RTCDtlsTransport, port: int = 5000) -> None:
        super().__init__(transport, port)
        self._rto = RTO_INITIAL_S
        self._window = CongestionWindow()
        self._peer_window = 0
        self._first_tsn = self._local_tsn
        self._sent: dict[int, Outgoing] = {}
        self._numbered = 0  # the number of the last chunk that was sent
        self._acked = 0  # the number up to which the peer has all
        self._peer_gaps: list[gap_blocks.Block] = []
        self._again: list[int] = []  # a heap of numbers to be sent again
        self._recovers_at: int | None = None
        self._before_recovery = self._window.snapshot()
        self._reordering = Reordering()
        self._suspects: dict[int, Outgoing] = {}  # missing often enough, and perhaps only late
        self._suspects_handle: asyncio.TimerHandle | None = None
        self._newest_rtt_s = 0.0  # of what had been sent last of all that has arrived
        self._newest_sent_at = 0.0
        self._tail = TailProbe(self._own_loop, self._probe_tail)
        self._free_resend = False  # the first one of a recovery goes whatever the window says
        self._share = Share()
        self._shortest_rtt_s = RTO_INITIAL_S
        self._peak_bytes = 0  # the largest flight since it was last looked at
        self._room_bytes = 0  # what acknowledgments have made room for, and nothing filled yet
        self._t3_failures = 0
        self._t3_at: float | None = None
        self._t3_fires_at = 0.0

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is not self.State.CLOSED:
            return
        self._share.idle()
        self._tail.stop()
        if self._suspects_handle is not None:
            self._suspects_handle.cancel()
            self._suspects_handle = None

    def _update_rto(self, R: float) -> None:
        super()._update_rto(R)
        self._shortest_rtt_s = min(self._shortest_rtt_s, R)
        if R < SHORT_RTT_S:
            self._eager = min(self._eager, EAGER_ON_SHORT_PATH)

    def _flush_now(self) -> None:
        """Send what may be sent; the sending half's."""
        raise TypeError("this is half of an association")

    def _probe_tail(self) -> None:
        """Send one packet whatever the window says; the sending half's."""
        raise TypeError("this is half of an association")

    def _tsn(self, number: int) -> int:
        return (self._first_tsn + number - 1) & packets.TSN_MASK

    # Acknowledgments.

    def _take_sack(self, body: bytes) -> None:
        if self._association_state is self.State.CLOSED:
            return  # no timer begins after the end
        tsn, window_bytes, gap_count, twice_count = _SACK.unpack_from(body)
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
                    if chunk.serial > newest:
                        newest = chunk.serial
                        self._note_newest(chunk.sent_at)
                    if chunk.misses and chunk.sendings == 1:
                        self._reordering.seen(self._shortest_rtt_s)
                    self._lands(chunk)
            self._peer_gaps = blocks
            if newest:
                self._strike(blocks, newest)
        if twice_count:
            self._take_doubled(body[_SACK.size + 4 * gap_count :], twice_count)
        if advance or acked_bytes or window_bytes < FULL_BYTES:
            self._t3_failures = 0  # a peer without room is alive (RFC 9260 section 6.1 A)
        if (mended := self._tail.repaired(self._shortest_rtt_s)) and self._recovers_at is None:
            self._shrink()
            self._reordering.sent_again(mended)
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
        if not self._flight_size:
            self._tail.rest()
        elif acked_bytes:
            self._tail.expect(self._srtt, self._rttvar)

    def _acknowledge(self, advance: int) -> tuple[int, int]:
        """Let go of the next `advance` chunks; return the newest serial and the bytes."""
        newest = acked_bytes = 0
        newest_at = 0.0
        sampled_at: float | None = None
        take = self._sent.pop
        for number in range(self._acked + 1, self._acked + advance + 1):
            chunk = take(number)
            if chunk.here:
                continue
            acked_bytes += len(chunk.user_data)
            if chunk.serial > newest:
                newest, newest_at = chunk.serial, chunk.sent_at
            if chunk.sendings == 1:  # Karn's rule
                sampled_at = chunk.sent_at
                if chunk.misses:
                    self._reordering.seen(self._shortest_rtt_s)
            self._lands(chunk)
        self._acked += advance
        if newest:
            self._note_newest(newest_at)
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
        long_before = self._newest_sent_at - (self._srtt or RTO_INITIAL_S)
        for hole in gap_blocks.holes(blocks, self._acked + 1):
            for number in hole:
                chunk = self._sent[number]
                if not chunk.flies or chunk.serial > newest:
                    continue
                chunk.misses += 1
                if chunk.misses >= MISSED_TIMES or chunk.sent_at < long_before:
                    self._suspects[number] = chunk
        if self._suspects:
            self._judge()

    def _note_newest(self, sent_at: float) -> None:
        rtt_s = self._own_loop.time() - sent_at
        if rtt_s >= self._shortest_rtt_s:  # otherwise it was the first sending that arrived
            self._newest_rtt_s = rtt_s
            self._newest_sent_at = sent_at

    def _judge(self) -> None:
        """Send again the suspects that are too late, and look at the others when they will be."""
        now = self._own_loop.time()
        due_s = self._newest_rtt_s + self._reordering.window_s if self._reordering.window_s else 0.0
        wakes_at: float | None = None
        for number, chunk in list(self._suspects.items()):
            late_at = chunk.sent_at + due_s
            if chunk.flies and late_at > now:
                wakes_at = late_at if wakes_at is None else min(wakes_at, late_at)
                continue
            del self._suspects[number]
            if chunk.flies:
                self._lose(chunk)
        if self._suspects_handle is not None:
            self._suspects_handle.cancel()
            self._suspects_handle = None
        if wakes_at is not None:
            self._suspects_handle = self._own_loop.call_at(wakes_at, self._judge_later)

    def _judge_later(self) -> None:
        self._suspects_handle = None
        self._judge()
        self._flush_in_turn()

    def _lose(self, chunk: Outgoing) -> None:
        self._lands(chunk)
        heapq.heappush(self._again, chunk.number)
        if self._recovers_at is None:
            self._shrink()
            self._recovers_at = self._numbered
            self._free_resend = True
        self._reordering.sent_again(chunk.number)

    def _shrink(self) -> None:
        """Something was lost; the window is given back where that proves wrong."""
        self._before_recovery = self._window.snapshot()
        self._window.lost()
        self._reordering.recovery_began()

    def _take_doubled(self, body: bytes, count: int) -> None:
        if len(body) < 4 * count:
            return
        base = self._first_tsn - 1
        numbers = [
            (tsn - base) & packets.TSN_MASK
            for (tsn,) in struct.iter_unpack("!L", body[: 4 * count])
        ]
        self._tail.doubled(numbers)
        if self._reordering.doubled(numbers, self._srtt or RTO_INITIAL_S):
            self._window.restore(self._before_recovery)

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
        self._suspects.clear()
        self._tail.rest()
        self._before_recovery = self._window.snapshot()
        # All of it, also what the peer had reported: it may have thrown that away.
        self._peer_gaps = []
        for chunk in self._sent.values():
            chunk.here = False
            self._lands(chunk)
        self._again = sorted(self._sent)
        self._arm_t3()
        self._flush_now()
