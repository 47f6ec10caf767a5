# SPDX-License-Identifier: GPL-2.0-or-later
"""
What READ_REG and WRITE_REG reach: fuses, the UART's divider, and the SPI controller, through
which a host talks to the flash chip itself. Every other word remembers what was written.
"""

from __future__ import annotations

import struct
from typing import Final

from aegis_agent.virtual_board.chips import Chip
from aegis_agent.virtual_board.flash import NorFlash

CHIP_MAGIC: Final = 0x40001000
XTAL_HZ: Final = 40_000_000
SPI_START: Final = 1 << 18
WATCHDOG_ON: Final = 1 << 31
MAX_WORDS: Final = 65_536

READ_ID: Final = 0x9F
READ_SFDP: Final = 0x5A
READ_STATUS: Final = {0x05: 0, 0x35: 8, 0x15: 16}
WRITE_STATUS: Final = {0x01: 0, 0x31: 8, 0x11: 16}


class Registers:
    """The address space of one board, as wide as the loader's users look."""

    def __init__(self, chip: Chip, flash: NorFlash, mac: bytes, revision: str) -> None:
        self._chip = chip
        self._flash = flash
        self._words = {CHIP_MAGIC: chip.magic, **chip.efuses(mac, revision)}
        self._read_only = frozenset(self._words)
        self._status = 0
        self._sfdp = sfdp_table(flash.size_bytes)

    def read(self, address: int, baud: int) -> int:
        """Return the word at `address`; the UART's divider follows from its rate, `baud`."""
        if address == self._chip.uart_divider:
            return XTAL_HZ // baud
        return self._words.get(address, 0)

    def write(self, address: int, value: int, mask: int) -> bool:
        """Write the bits in `mask`; True says that this write let a watchdog reset the chip."""
        if address in self._read_only:
            return False
        if address == self._chip.spi.command and value & mask & SPI_START:
            self._run_spi_command()
            return False
        if address in self._words or len(self._words) < MAX_WORDS:
            self._words[address] = self._words.get(address, 0) & ~mask | value & mask
        return address == self._chip.watchdog and bool(value & mask & WATCHDOG_ON)

    def _run_spi_command(self) -> None:
        spi = self._chip.spi
        command = self._words.get(spi.base + spi.user2, 0) & 0xFF
        answer = 0
        if command == READ_ID:
            answer = self._flash.jedec_id()
        elif command == READ_SFDP:
            address = self._words.get(spi.address, 0)
            address = address >> 8 if spi.address_at_top else address & 0xFFFFFF
            answer = int.from_bytes(self._sfdp[address : address + 4].ljust(4, b"\xff"), "little")
        elif command in READ_STATUS:
            answer = self._status >> READ_STATUS[command] & 0xFF
        elif command in WRITE_STATUS:
            shift = WRITE_STATUS[command]
            value = self._words.get(spi.base + spi.w0, 0) & 0xFF
            self._status = self._status & ~(0xFF << shift) | value << shift
        self._words[spi.base + spi.w0] = answer


def sfdp_table(size_bytes: int) -> bytes:
    """
    Return the Serial Flash Discoverable Parameters (JESD216) of a flash of `size_bytes`.

    One header, the basic table with its density, and GigaDevice's header without a table.
    """
    header = b"SFDP" + bytes((0x00, 0x01, 0x01, 0xFF))
    basic = bytes((0x00, 0x00, 0x01, 0x09)) + struct.pack("<I", 0xFF000030)
    vendor = bytes((0xC8, 0x00, 0x01, 0x03)) + struct.pack("<I", 0xFF000060)
    words = [0xFFFFFFFF] * 9
    words[0] = 0xFFF120E5  # 4 KiB sectors by 0x20, three address bytes
    words[1] = size_bytes * 8 - 1
    words[7] = 0xD810200C  # erases of 4 KiB by 0x20 and 64 KiB by 0xD8
    table = (header + basic + vendor).ljust(0x30, b"\xff") + struct.pack("<9I", *words)
    return table.ljust(0x100, b"\xff")
