# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of the loaders: operations, answers, and why a request is refused."""

from __future__ import annotations

import enum
import functools
import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

CHECKSUM_SEED: Final = 0xEF
_BLOCK_HEADER: Final = struct.Struct("<IIII")


class Op(enum.IntEnum):
    FLASH_BEGIN = 0x02
    FLASH_DATA = 0x03
    FLASH_END = 0x04
    MEM_BEGIN = 0x05
    MEM_END = 0x06
    MEM_DATA = 0x07
    SYNC = 0x08
    WRITE_REG = 0x09
    READ_REG = 0x0A
    SPI_SET_PARAMS = 0x0B
    SPI_ATTACH = 0x0D
    READ_FLASH_SLOW = 0x0E
    CHANGE_BAUDRATE = 0x0F
    FLASH_DEFL_BEGIN = 0x10
    FLASH_DEFL_DATA = 0x11
    FLASH_DEFL_END = 0x12
    SPI_FLASH_MD5 = 0x13
    GET_SECURITY_INFO = 0x14
    ERASE_FLASH = 0xD0
    ERASE_REGION = 0xD1
    READ_FLASH = 0xD2
    RUN_USER_CODE = 0xD3


class Refusal(enum.Enum):
    """Why a request fails: the reason byte of the ROM, and of the stub."""

    UNKNOWN_COMMAND = (0x05, 0xFF)
    FAILED = (0x06, 0xC4)
    BAD_LENGTH = (0x05, 0xC0)
    BAD_CHECKSUM = (0x07, 0xC1)
    WRITE_FAILED = (0x08, 0xC4)
    READ_FAILED = (0x09, 0xC4)
    NOT_BEGUN = (0x06, 0xC6)
    INFLATE_FAILED = (0x0B, 0xC7)
    TOO_MUCH_DATA = (0x06, 0xC9)

    @property
    def of_rom(self) -> int:
        return self.value[0]

    @property
    def of_stub(self) -> int:
        return self.value[1]


class Refused(Exception):
    def __init__(self, why: Refusal) -> None:
        super().__init__(why.name)
        self.why = why


@dataclass(frozen=True)
class Answer:
    """
    What a command gives: `value` and `data` of the answer, packets that follow it, and what
    the board does when all of that was sent.
    """

    value: int = 0
    data: bytes = b""
    frames: tuple[bytes, ...] = ()
    then: Callable[[], None] | None = None


def checksum(data: bytes) -> int:
    return functools.reduce(operator.xor, data, CHECKSUM_SEED)


def checked_block(payload: bytes, expected_checksum: int) -> bytes:
    """Return the data of a block after its 16-byte header; raise `Refused` when it is damaged."""
    size, _sequence, _, _ = _BLOCK_HEADER.unpack_from(payload)
    block = payload[_BLOCK_HEADER.size :]
    if size != len(block):
        raise Refused(Refusal.BAD_LENGTH)
    if checksum(block) != expected_checksum:
        raise Refused(Refusal.BAD_CHECKSUM)
    return block
