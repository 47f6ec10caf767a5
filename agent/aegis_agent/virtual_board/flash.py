# SPDX-License-Identifier: GPL-2.0-or-later
"""
A NOR flash: writing clears bits, erasing a sector or a block sets them, and nothing else does.

Kept in memory, or in a file that is changed in place: it survives the board's process as a
real flash survives a power cut, half-written sectors included.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aegis_protocol.failures.virtual_board import BadBoardSetting, FlashFileUnusable

SECTOR_BYTES: Final = 4096
BLOCK_BYTES: Final = 65_536
SIZES: Final = tuple(2**n for n in range(18, 28))  # 256 KiB to 128 MiB
_WRITE_STEP_BYTES: Final = 65_536


class OutOfFlash(Exception):
    """A range that does not lie within the flash."""


class NorFlash:
    """`size_bytes` of flash over `cells`, erased where nothing was written yet."""

    def __init__(self, cells: bytearray | mmap.mmap) -> None:
        self._cells = cells
        self.size_bytes = len(cells)

    def read(self, offset: int, size: int) -> bytes:
        self._check(offset, size)
        return bytes(self._cells[offset : offset + size])

    def program(self, offset: int, data: bytes) -> None:
        """Clear each bit that is 0 in `data`; a bit that is 0 already stays 0."""
        self._check(offset, len(data))
        for start in range(0, len(data), _WRITE_STEP_BYTES):
            new = data[start : start + _WRITE_STEP_BYTES]
            at = offset + start
            old = self._cells[at : at + len(new)]
            both = int.from_bytes(old, "little") & int.from_bytes(new, "little")
            self._cells[at : at + len(new)] = both.to_bytes(len(new), "little")

    def erase_sector(self, offset: int) -> None:
        self._erase(offset, SECTOR_BYTES)

    def erase_block(self, offset: int) -> None:
        self._erase(offset, BLOCK_BYTES)

    def erase_range(self, offset: int, size: int) -> None:
        """Erase the sectors that `size` bytes from `offset` on touch, by blocks where they fit."""
        self._check(offset, size)
        at = offset - offset % SECTOR_BYTES
        end = -(-(offset + size) // SECTOR_BYTES) * SECTOR_BYTES
        while at < end:
            if at % BLOCK_BYTES == 0 and end - at >= BLOCK_BYTES:
                self.erase_block(at)
                at += BLOCK_BYTES
            else:
                self.erase_sector(at)
                at += SECTOR_BYTES

    def erase_chip(self) -> None:
        self.erase_range(0, self.size_bytes)

    def jedec_id(self) -> int:
        """Return what command 0x9F answers, first byte lowest: GigaDevice, GD25Q, capacity."""
        return 0xC8 | 0x40 << 8 | (self.size_bytes.bit_length() - 1) << 16

    def _erase(self, offset: int, size: int) -> None:
        if offset % size:
            raise OutOfFlash(f"{offset:#x} is no boundary of {size} bytes")
        self._check(offset, size)
        self._cells[offset : offset + size] = b"\xff" * size

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise OutOfFlash(f"{size} bytes at {offset:#x} are not within {self.size_bytes} bytes")


@contextmanager
def open_flash(size_bytes: int | None, default_bytes: int, path: Path | None) -> Iterator[NorFlash]:
    """
    Open a flash, erased where it is new.

    size_bytes      as asked for; None is the size of the file, or `default_bytes`
    path            the file that keeps it; None keeps it in memory

    Raises
    ------
    BadBoardSetting    no flash has that size
    FlashFileUnusable  the file can't be opened, has another size, or another board uses it
    """
    if path is None:
        yield NorFlash(bytearray(b"\xff") * _checked_size(size_bytes or default_bytes))
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise FlashFileUnusable(f"The flash file {path} can't be opened: {exc.strerror}.") from exc
    try:
        _lock(descriptor, path)
        found = os.fstat(descriptor).st_size
        size = _checked_size(size_bytes or found or default_bytes)
        if not found:
            _fill(descriptor, path, size)
        elif found != size:
            raise FlashFileUnusable(f"The flash file {path} has {found} bytes, not {size}.")
        with mmap.mmap(descriptor, size) as cells:
            yield NorFlash(cells)
    finally:
        os.close(descriptor)


def _checked_size(size_bytes: int) -> int:
    if size_bytes not in SIZES:
        raise BadBoardSetting(
            f"No flash has {size_bytes} bytes: it is a power of two from 256 KiB to 128 MiB."
        )
    return size_bytes


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise FlashFileUnusable(f"Another board uses the flash file {path}.") from exc


def _fill(descriptor: int, path: Path, size_bytes: int) -> None:
    try:
        erased = memoryview(b"\xff" * min(size_bytes, 2**20))
        left = size_bytes
        while left:
            left -= os.write(descriptor, erased[:left])
    except OSError as exc:
        os.ftruncate(descriptor, 0)
        raise FlashFileUnusable(f"The flash file {path} can't be made: {exc.strerror}.") from exc
