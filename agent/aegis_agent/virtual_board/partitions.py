# SPDX-License-Identifier: GPL-2.0-or-later
"""
The partition table, and which application it says to start.

As ESP-IDF's bootloader does it (bootloader_utility.c, flash_partitions.c): entries of 32 bytes
with magic 0x50AA, an optional MD5 of them, the end by 0xFFFF. An `otadata` partition that was
never written means the factory application, and the first OTA slot where there is no factory.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aegis_agent.virtual_board.image import ReadFlash

TABLE_OFFSET: Final = 0x8000
_TABLE_BYTES: Final = 0xC00
_SECTOR_BYTES: Final = 0x1000
_ENTRY: Final = struct.Struct("<HBBII16sI")
_MAGIC: Final = 0x50AA
_MAGIC_MD5: Final = 0xEBEB
_END: Final = 0xFFFF
_APP, _DATA = 0, 1
_FACTORY, _OTA_0, _OTA_LAST = 0x00, 0x10, 0x1F
_OTADATA: Final = 0x00
_OTA_SELECT: Final = struct.Struct("<I20sII")
_ERASED: Final = 0xFFFFFFFF
_OTA_STATES_UNUSABLE: Final = (3, 4)  # invalid, aborted


class TableFault(Exception):
    """No table that a bootloader would take; the text is what it says, one complaint per line."""


@dataclass(frozen=True, slots=True)
class Partition:
    type: int
    subtype: int
    offset: int
    size_bytes: int

    @property
    def is_app(self) -> bool:
        return self.type == _APP


def read_table(flash: ReadFlash) -> tuple[Partition, ...]:
    """Return the table's entries in their order; raise `TableFault` where there is no valid one."""
    raw = flash(TABLE_OFFSET, _TABLE_BYTES)
    found: list[Partition] = []
    for at in range(0, len(raw) - _ENTRY.size + 1, _ENTRY.size):
        magic, kind, subtype, offset, size_bytes, _, _ = _ENTRY.unpack_from(raw, at)
        if magic == _END and found:
            return tuple(found)
        if magic == _MAGIC_MD5 and found:
            if hashlib.md5(raw[:at], usedforsecurity=False).digest() != raw[at + 16 : at + 32]:
                raise TableFault("Incorrect MD5 value")
            continue
        if magic != _MAGIC:
            raise TableFault(f"partition {len(found)} invalid magic number 0x{magic:x}")
        found.append(Partition(kind, subtype, offset, size_bytes))
    raise TableFault("partition table has no terminating entry, not valid")


def bootable(table: Sequence[Partition], flash: ReadFlash) -> tuple[Partition, ...]:
    """
    Return the application partitions in the order in which a bootloader tries them.

    Empty where the table has neither a factory application nor an OTA slot.
    """
    factory = tuple(p for p in table if p.is_app and p.subtype == _FACTORY)[:1]
    slots = tuple(
        sorted(
            (p for p in table if p.is_app and _OTA_0 <= p.subtype <= _OTA_LAST),
            key=lambda p: p.subtype,
        )
    )
    chosen = _chosen_slot(table, flash, len(slots))
    if chosen is None:
        return factory + slots
    return slots[chosen:] + slots[:chosen] + factory


def _chosen_slot(table: Sequence[Partition], flash: ReadFlash, slots: int) -> int | None:
    """Return the index of the slot that otadata names, None where it names none."""
    otadata = next((p for p in table if (p.type, p.subtype) == (_DATA, _OTADATA)), None)
    if otadata is None or not slots:
        return None
    sequences = []
    for copy in range(2):
        raw = flash(otadata.offset + copy * _SECTOR_BYTES, _OTA_SELECT.size)
        if len(raw) != _OTA_SELECT.size:
            continue
        sequence, _, state, crc = _OTA_SELECT.unpack(raw)
        # The chips' ROM counts its CRC from an inverted seed, hence the second argument.
        sums_up = crc == zlib.crc32(struct.pack("<I", sequence), 0xFFFFFFFF)
        if 0 < sequence < _ERASED and sums_up and state not in _OTA_STATES_UNUSABLE:
            sequences.append(sequence)
    return (max(sequences) - 1) % slots if sequences else None
