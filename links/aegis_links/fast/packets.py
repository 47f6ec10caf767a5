"""SCTP packets as bytes (RFC 9260 section 3): those that carry data and those that acknowledge."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from google_crc32c import value as crc32c

DATA: Final = 0
SACK: Final = 3
TSN_MASK: Final = 0xFFFF_FFFF
DATA_HEADER_BYTES: Final = 16
SACK_HEADER_BYTES: Final = 16
MAX_GAP_BLOCKS: Final = 256
"""So many that a packet of them stays below 1,189 bytes."""

_COMMON: Final = 12
_DATA_PACKET: Final = struct.Struct("!HHLLBBHLHHL")
_SACK_PACKET: Final = struct.Struct("!HHLLBBHLLHH")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_NO_SUM: Final = b"\0\0\0\0"


def summed(packet: bytes) -> bytes:
    """Return `packet`, whose checksum field is zero, with its checksum."""
    checksum: int = crc32c(packet)
    return packet[:8] + checksum.to_bytes(4, "little") + packet[_COMMON:]


def is_sound(packet: bytes) -> bool:
    """Whether a packet is as it was sent."""
    expected: int = crc32c(packet[:8] + _NO_SUM + packet[_COMMON:])
    return int.from_bytes(packet[8:_COMMON], "little") == expected


class Association:
    """What stands in every packet of an association."""

    def __init__(self, local_port: int, remote_port: int, tag: int) -> None:
        self._head = (local_port, remote_port, tag, 0)

    def data(
        self, flags: int, tsn: int, stream_id: int, sequence: int, protocol: int, payload: bytes
    ) -> bytes:
        length = DATA_HEADER_BYTES + len(payload)
        head = _DATA_PACKET.pack(
            *self._head, DATA, flags, length, tsn, stream_id, sequence, protocol
        )
        return summed(head + payload + _PADDING[length & 3])

    def sack(
        self, tsn: int, window_bytes: int, gaps: Sequence[tuple[int, int]], twice: Sequence[int]
    ) -> bytes:
        length = SACK_HEADER_BYTES + 4 * (len(gaps) + len(twice))
        packet = _SACK_PACKET.pack(
            *self._head, SACK, 0, length, tsn, window_bytes, len(gaps), len(twice)
        )
        if gaps:
            packet += b"".join(struct.pack("!HH", first, last) for first, last in gaps)
        if twice:
            packet += struct.pack(f"!{len(twice)}L", *twice)
        return summed(packet)


def plain_chunks(packet: bytes) -> list[tuple[int, int, int, int]] | None:
    """
    Return (type, flags, start, end) of the chunks, start and end being those of their bodies.

    None if there is any but DATA and SACK, or if one is malformed.
    """
    chunks = []
    at, length = _COMMON, len(packet)
    while at + 4 <= length:
        kind = packet[at]
        end = at + (packet[at + 2] << 8) + packet[at + 3]
        if end > length:
            return None
        if kind == DATA:
            if end <= at + DATA_HEADER_BYTES:
                return None
        elif kind != SACK or end < at + SACK_HEADER_BYTES:
            return None
        chunks.append((kind, packet[at + 1], at + 4, end))
        at = (end + 3) & ~3
    return chunks or None
