"""
Fragments to messages: aiortc's stream, with a short way for what comes in order.

While nothing is missing, the fragments of the message under way are a list of bytes. The first
one out of order turns it into aiortc's sorted chunks, until those are used up again.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    DataChunk,
    InboundStream,
    tsn_plus_one,
)
from aiortc.utils import uint16_add

Message = tuple[int, int, bytes]
"""Stream, payload protocol, content."""


class FastInboundStream(InboundStream):
    def __init__(self) -> None:
        super().__init__()
        self._run: list[bytes] = []
        self._run_began = (0, 0, 0)  # TSN, stream, protocol
        self._run_ends = 0  # the TSN that continues it

    @property
    def held(self) -> int:
        """How many fragments wait for others."""
        return len(self._run) + len(self.reassembly)

    def take_in_order(
        self, flags: int, tsn: int, stream_id: int, sequence: int, protocol: int, payload: bytes
    ) -> bytes | None:
        """
        Take a fragment if it is just what continues this stream; return the message it completes.

        Raises OutOfOrder for any other: then `take` it.
        """
        if self.reassembly or sequence != self.sequence_number or flags & SCTP_DATA_UNORDERED:
            raise OutOfOrder
        if flags & SCTP_DATA_FIRST_FRAG:
            if self._run:
                raise OutOfOrder
            if flags & SCTP_DATA_LAST_FRAG:
                self.sequence_number = (sequence + 1) & 0xFFFF
                return payload
            self._run_began = (tsn, stream_id, protocol)
        elif not self._run or tsn != self._run_ends:
            raise OutOfOrder
        self._run.append(payload)
        self._run_ends = (tsn + 1) & 0xFFFF_FFFF
        if not flags & SCTP_DATA_LAST_FRAG:
            return None
        message = b"".join(self._run)
        self._run.clear()
        self.sequence_number = uint16_add(sequence, 1)
        return message

    def take(self, chunk: DataChunk) -> Iterator[Message]:
        """Take any fragment, and yield the messages that are complete now."""
        if self._run:
            self.reassembly = self._run_as_chunks()
            self._run.clear()
        self.add_chunk(chunk)
        yield from self.pop_messages()

    def _run_as_chunks(self) -> list[DataChunk]:
        tsn, stream_id, protocol = self._run_began
        chunks: list[DataChunk] = []
        for payload in self._run:
            chunk = DataChunk(0 if chunks else SCTP_DATA_FIRST_FRAG)
            chunk.tsn, chunk.stream_id, chunk.protocol = tsn, stream_id, protocol
            chunk.stream_seq, chunk.user_data = self.sequence_number, payload
            chunks.append(chunk)
            tsn = tsn_plus_one(tsn)
        return chunks


class OutOfOrder(Exception):
    """A fragment that needs the long way."""
