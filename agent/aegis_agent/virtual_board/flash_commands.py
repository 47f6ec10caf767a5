# SPDX-License-Identifier: GPL-2.0-or-later
"""
The loader's commands on the flash.

The ROM erases a whole region when a write begins; the stub erases just ahead of what it
writes. Either way bits are only cleared by the write itself: what was not erased shows.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Final

from aegis_agent.virtual_board.control_words import FaultName
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import BLOCK_BYTES, SECTOR_BYTES, NorFlash, OutOfFlash
from aegis_agent.virtual_board.loader_words import Answer, Refusal, Refused, checked_block

SLOW_READ_BYTES: Final = 64
MAX_INFLATED_STEP_BYTES: Final = 16 * 1024 * 1024


@dataclass
class _Write:
    """A write that goes on: where the next byte goes, and what is erased for it."""

    cursor: int
    end: int
    erased_to: int
    erase_end: int
    is_broken: bool = False
    inflate: Any = field(default_factory=zlib.decompressobj)


@dataclass
class _ReadOut:
    """A read that goes on: one block is on its way, the next follows its acknowledgement."""

    offset: int
    size: int
    block_bytes: int
    sent: int = 0
    digest: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))


class FlashCommands:
    def __init__(self, flash: NorFlash, faults: Faults) -> None:
        self._flash = flash
        self._faults = faults
        self._write: _Write | None = None
        self._read_out: _ReadOut | None = None

    # --- writing ---

    def begin_in_rom(self, payload: bytes, _checksum: int) -> Answer:
        erase_bytes, blocks, block_bytes, offset = struct.unpack_from("<IIII", payload)
        return self._begin(offset, blocks * block_bytes, erase_bytes, erases_now=True)

    def begin_in_stub(self, payload: bytes, _checksum: int) -> Answer:
        erase_bytes, blocks, block_bytes, offset = struct.unpack_from("<IIII", payload)
        return self._begin(offset, blocks * block_bytes, erase_bytes, erases_now=False)

    def begin_deflated_in_rom(self, payload: bytes, _checksum: int) -> Answer:
        size, _blocks, _block_bytes, offset = struct.unpack_from("<IIII", payload)
        return self._begin(offset, size, size, erases_now=True)

    def begin_deflated_in_stub(self, payload: bytes, _checksum: int) -> Answer:
        size, _blocks, _block_bytes, offset = struct.unpack_from("<IIII", payload)
        return self._begin(offset, size, size, erases_now=False)

    def data(self, payload: bytes, checksum: int) -> Answer:
        self._program(checked_block(payload, checksum))
        return Answer()

    def deflated_data(self, payload: bytes, checksum: int) -> Answer:
        block = checked_block(payload, checksum)
        write = self._begun()
        try:
            plain = write.inflate.decompress(block, MAX_INFLATED_STEP_BYTES)
        except zlib.error as exc:
            raise Refused(Refusal.INFLATE_FAILED) from exc
        if write.inflate.unconsumed_tail or write.inflate.unused_data:
            raise Refused(Refusal.TOO_MUCH_DATA)
        self._program(plain)
        return Answer()

    def finish(self) -> None:
        self._write = None

    # --- digests, erasing, reading ---

    def md5_in_rom(self, payload: bytes, _checksum: int) -> Answer:
        return Answer(data=self._md5(payload).hex().encode())

    def md5_in_stub(self, payload: bytes, _checksum: int) -> Answer:
        return Answer(data=self._md5(payload))

    def erase_chip(self, _payload: bytes, _checksum: int) -> Answer:
        self._refuse_when_broken(1)
        self._flash.erase_chip()
        return Answer()

    def erase_region(self, payload: bytes, _checksum: int) -> Answer:
        offset, size = struct.unpack("<II", payload)
        if offset % SECTOR_BYTES or size % SECTOR_BYTES:
            raise Refused(Refusal.FAILED)
        self._refuse_when_broken(1)
        self._erase(offset, size)
        return Answer()

    def read_slow(self, payload: bytes, _checksum: int) -> Answer:
        offset, size = struct.unpack("<II", payload)
        if size > SLOW_READ_BYTES:
            raise Refused(Refusal.BAD_LENGTH)
        return Answer(data=self._read(offset, size).ljust(SLOW_READ_BYTES, b"\0"))

    def read_out(self, payload: bytes, _checksum: int) -> Answer:
        offset, size, block_bytes, _in_flight = struct.unpack("<IIII", payload)
        if not 0 < block_bytes <= SECTOR_BYTES:
            raise Refused(Refusal.BAD_LENGTH)
        if offset + size > self._flash.size_bytes:
            raise Refused(Refusal.READ_FAILED)
        self._read_out = _ReadOut(offset, size, block_bytes)
        return Answer(frames=self._next_block())

    @property
    def is_reading_out(self) -> bool:
        return self._read_out is not None

    def stop_reading_out(self) -> None:
        self._read_out = None

    def acknowledge(self, packet: bytes) -> tuple[bytes, ...]:
        """Take the host's count of bytes; return what follows: a block, the digest or nothing."""
        read = self._read_out
        if read is None or int.from_bytes(packet, "little") < read.sent:
            return ()
        return self._next_block()

    def _next_block(self) -> tuple[bytes, ...]:
        read = self._read_out
        if read is None:
            return ()
        if read.sent == read.size:
            self._read_out = None
            return (self._falsified(read.digest.digest()),)
        block = self._read(read.offset + read.sent, min(read.block_bytes, read.size - read.sent))
        read.sent += len(block)
        read.digest.update(block)
        return (block,)

    # --- the flash chip ---

    def _begin(self, offset: int, size: int, erase_bytes: int, *, erases_now: bool) -> Answer:
        if offset + erase_bytes > self._flash.size_bytes:
            raise Refused(Refusal.FAILED)
        first = offset - offset % SECTOR_BYTES
        erase_end = -(-(offset + erase_bytes) // SECTOR_BYTES) * SECTOR_BYTES
        if not erase_bytes:
            erase_end = first
        if erases_now:
            self._erase(first, erase_end - first)
            first = erase_end
        self._write = _Write(offset, offset + size, first, erase_end)
        return Answer()

    def _begun(self) -> _Write:
        if self._write is None:
            raise Refused(Refusal.NOT_BEGUN)
        if self._write.is_broken:  # a block sent again would continue a stream with a hole
            raise Refused(Refusal.WRITE_FAILED)
        return self._write

    def _program(self, data: bytes) -> None:
        write = self._begun()
        if write.cursor + len(data) > write.end:
            raise Refused(Refusal.TOO_MUCH_DATA)
        write.is_broken = True
        self._refuse_when_broken(len(data))
        write.is_broken = False
        # A host pads its last block: what would go beyond the flash's end goes nowhere.
        kept = data[: max(0, self._flash.size_bytes - write.cursor)]
        while write.erased_to < min(write.cursor + len(kept), write.erase_end):
            is_block = write.erased_to % BLOCK_BYTES == 0
            if is_block and write.erase_end - write.erased_to >= BLOCK_BYTES:
                self._flash.erase_block(write.erased_to)
                write.erased_to += BLOCK_BYTES
            else:
                self._flash.erase_sector(write.erased_to)
                write.erased_to += SECTOR_BYTES
        self._flash.program(write.cursor, kept)
        write.cursor += len(data)

    def _erase(self, offset: int, size: int) -> None:
        try:
            self._flash.erase_range(offset, size)
        except OutOfFlash as exc:
            raise Refused(Refusal.FAILED) from exc

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return self._flash.read(offset, size)
        except OutOfFlash as exc:
            raise Refused(Refusal.READ_FAILED) from exc

    def _md5(self, payload: bytes) -> bytes:
        offset, size, _, _ = struct.unpack("<IIII", payload)
        found = hashlib.md5(self._read(offset, size), usedforsecurity=False).digest()
        return self._falsified(found)

    def _falsified(self, digest: bytes) -> bytes:
        if self._faults.amount(FaultName.BAD_MD5) is None:
            return digest
        return bytes(byte ^ 0xFF for byte in digest)

    def _refuse_when_broken(self, size: int) -> None:
        if self._faults.spend(FaultName.WRITE_ERROR, size) < size:
            raise Refused(Refusal.WRITE_FAILED)
