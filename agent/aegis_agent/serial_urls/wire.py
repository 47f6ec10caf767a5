"""
How a serial port travels over a Unix stream socket.

    program -> board   hello     "AVB1", lines u8, baud u32             once
                       frames    kind u8, length u16, payload           then, any number
                         DATA      bytes for the board's receiver
                         LINES     u8: bit 0 DTR, bit 1 RTS, bit 2 break
                         BAUD      u32
    board -> program   verdict   "AVB1", verdict u8, length u16, text   once
                       bytes     what the board's transmitter sent      then

Integers are big-endian. Only the program's side is framed: what the board sends stays plain
bytes, so the program's descriptor is readable exactly while there is something to read.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

MAGIC: Final = b"AVB1"
MAX_PAYLOAD_BYTES: Final = 32_768

HELLO: Final = struct.Struct(">4sBI")
FRAME: Final = struct.Struct(">BH")
VERDICT: Final = struct.Struct(">4sBH")


class Kind(enum.IntEnum):
    DATA = 1
    LINES = 2
    BAUD = 3


class Verdict(enum.IntEnum):
    YOURS = 0
    BUSY = 1
    UNKNOWN_PROTOCOL = 2


class Lines(NamedTuple):
    """The lines that a host drives; True is asserted (electrically low on a board)."""

    dtr: bool = False
    rts: bool = False
    brk: bool = False

    def pack(self) -> int:
        return self.dtr | self.rts << 1 | self.brk << 2


def lines_from(bits: int) -> Lines:
    return Lines(bool(bits & 1), bool(bits & 2), bool(bits & 4))


def hello(lines: Lines, baud: int) -> bytes:
    return HELLO.pack(MAGIC, lines.pack(), baud)


def verdict(what: Verdict, text: str = "") -> bytes:
    words = text.encode()[:1024]
    return VERDICT.pack(MAGIC, what, len(words)) + words


def data_frames(data: bytes) -> bytes:
    """Return `data` as one frame for each `MAX_PAYLOAD_BYTES` of it."""
    frames = bytearray()
    for start in range(0, len(data), MAX_PAYLOAD_BYTES):
        part = data[start : start + MAX_PAYLOAD_BYTES]
        frames += FRAME.pack(Kind.DATA, len(part)) + part
    return bytes(frames)


def lines_frame(lines: Lines) -> bytes:
    return FRAME.pack(Kind.LINES, 1) + bytes((lines.pack(),))


def baud_frame(baud: int) -> bytes:
    return FRAME.pack(Kind.BAUD, 4) + struct.pack(">I", baud)
