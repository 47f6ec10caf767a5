# SPDX-License-Identifier: GPL-2.0-or-later
"""
The chips that a virtual board can be: one row each, and a new chip is a new row.

Addresses and bit fields are those of each chip's technical reference manual, chapters eFuse
Controller, SPI and UART, as esptool reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from aegis_protocol.failures.virtual_board import BadBoardSetting

MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class SpiRegisters:
    """
    Where the SPI controller in front of the flash has the registers of a "user" command.

    address_at_top   the flash address stands in the upper bits of its register (esp32), not
                     in the lower ones
    """

    base: int
    user2: int
    w0: int
    address_at_top: bool = False

    @property
    def command(self) -> int:
        return self.base

    @property
    def address(self) -> int:
        return self.base + 4


@dataclass(frozen=True)
class RevisionBits:
    """`width` bits of a revision's `part`, from bit `source` on, stand at `address` << `shift`."""

    part: str
    address: int
    shift: int
    width: int = 1
    source: int = 0


@dataclass(frozen=True)
class Chip:
    """
    One chip as its ROM and its registers show it.

    name, title      as targets are named (`esp32p4`), and as Espressif writes it
    image_id         the chip id in image headers, and in GET_SECURITY_INFO where there is one
    has_security_info  the ROM knows GET_SECURITY_INFO (the esp32's does not)
    magic            what READ_REG gives for 0x40001000
    mac_low, mac_high  the eFuse words with the last four and the first two bytes of the MAC
    fixed            other words that READ_REG gives from the start
    major_codes      how a major revision is coded, where that isn't plain
    watchdog         the register whose bit 31 starts the RTC watchdog, for a reset by it
    """

    name: str
    title: str
    image_id: int
    has_security_info: bool
    magic: int
    spi: SpiRegisters
    uart_divider: int
    mac_low: int
    mac_high: int
    revision: str
    revision_bits: tuple[RevisionBits, ...]
    flash_size: int
    download_banner: str
    watchdog: int | None = None
    fixed: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    major_codes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))

    def efuses(self, mac: bytes, revision: str) -> dict[int, int]:
        """
        Return the words that tell `mac` (6 bytes) and `revision` (`major.minor`).

        Raises
        ------
        BadBoardSetting   no such revision can be written into this chip's fuses
        """
        words = dict(self.fixed)
        words[self.mac_low] = words.get(self.mac_low, 0) | int.from_bytes(mac[2:], "big")
        words[self.mac_high] = words.get(self.mac_high, 0) | int.from_bytes(mac[:2], "big")
        parts = self._revision_parts(revision)
        for bits in self.revision_bits:
            value = parts[bits.part] >> bits.source & (1 << bits.width) - 1
            parts[bits.part] &= ~(((1 << bits.width) - 1) << bits.source)
            words[bits.address] = words.get(bits.address, 0) | value << bits.shift
        if any(parts.values()):
            raise BadBoardSetting(f"The {self.title} has no revision {revision}.")
        return words

    def _revision_parts(self, revision: str) -> dict[str, int]:
        major, _, minor = revision.partition(".")
        if not (major.isdecimal() and minor.isdecimal() and len(revision) < 8):
            raise BadBoardSetting(f"{revision!r} is no revision such as 1.3.")
        code = self.major_codes.get(int(major), int(major))
        return {"major": code, "minor": int(minor)}


_ESP32_EFUSE: Final = 0x3FF5A000
_P4_EFUSE: Final = 0x5012D044
_C3_EFUSE: Final = 0x60008844
_C6_EFUSE: Final = 0x600B0844

CHIPS: Final[Mapping[str, Chip]] = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            Chip(
                name="esp32",
                title="ESP32",
                image_id=0,
                has_security_info=False,
                magic=0x00F01D83,
                spi=SpiRegisters(0x3FF42000, user2=0x24, w0=0x80, address_at_top=True),
                uart_divider=0x3FF40014,
                mac_low=_ESP32_EFUSE + 0x04,
                mac_high=_ESP32_EFUSE + 0x08,
                revision="3.1",
                major_codes=MappingProxyType({2: 3, 3: 7}),
                revision_bits=(
                    RevisionBits("major", _ESP32_EFUSE + 0x0C, 15),
                    RevisionBits("major", _ESP32_EFUSE + 0x14, 20, source=1),
                    RevisionBits("major", 0x3FF6607C, 31, source=2),
                    RevisionBits("minor", _ESP32_EFUSE + 0x14, 24, width=2),
                ),
                fixed=MappingProxyType(
                    {
                        _ESP32_EFUSE + 0x0C: 1 << 9 | 1 << 13,  # package D0WD, rated 240 MHz
                        # The ROM's measure of the crystal: 800 * 15625 * 128 / 40 is 40 MHz.
                        _ESP32_EFUSE + 0x10: 128,
                        0x3FF5F06C: 800 << 7,
                    }
                ),
                flash_size=4 * MIB,
                download_banner=(
                    "ets Jul 29 2019 12:21:46\r\n\r\n"
                    "rst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))"
                    "\r\nwaiting for download\r\n"
                ),
            ),
            Chip(
                name="esp32p4",
                title="ESP32-P4",
                image_id=18,
                has_security_info=True,
                magic=0x00000000,
                spi=SpiRegisters(0x5008D000, user2=0x20, w0=0x58),
                uart_divider=0x500CA014,
                mac_low=_P4_EFUSE,
                mac_high=_P4_EFUSE + 0x04,
                revision="1.3",
                revision_bits=(
                    RevisionBits("minor", _P4_EFUSE + 0x08, 0, width=4),
                    RevisionBits("major", _P4_EFUSE + 0x08, 4, width=2),
                    RevisionBits("major", _P4_EFUSE + 0x08, 23, source=2),
                ),
                flash_size=16 * MIB,
                download_banner=(
                    "ESP-ROM:esp32p4-eco2-20240710\r\nBuild:Jul 10 2024\r\n"
                    "rst:0x1 (POWERON),boot:0x307 (DOWNLOAD(USB/UART0/SPI))\r\n"
                    "waiting for download\r\n"
                ),
                watchdog=0x50116000,
            ),
            Chip(
                name="esp32c3",
                title="ESP32-C3",
                image_id=5,
                has_security_info=True,
                magic=0x1B31506F,
                spi=SpiRegisters(0x60002000, user2=0x20, w0=0x58),
                uart_divider=0x60000014,
                mac_low=_C3_EFUSE,
                mac_high=_C3_EFUSE + 0x04,
                revision="0.4",
                revision_bits=(
                    RevisionBits("minor", _C3_EFUSE + 0x0C, 18, width=3),
                    RevisionBits("minor", _C3_EFUSE + 0x14, 23, source=3),
                    RevisionBits("major", _C3_EFUSE + 0x14, 24, width=2),
                ),
                flash_size=16 * MIB,
                download_banner=(
                    "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n"
                    "rst:0x1 (POWERON),boot:0x5 (DOWNLOAD(USB/UART0/1))\r\n"
                    "waiting for download\r\n"
                ),
                watchdog=0x60008090,
            ),
            Chip(
                name="esp32c6",
                title="ESP32-C6",
                image_id=13,
                has_security_info=True,
                magic=0x2CE0806F,
                spi=SpiRegisters(0x60003000, user2=0x20, w0=0x58),
                uart_divider=0x60000014,
                mac_low=_C6_EFUSE,
                mac_high=_C6_EFUSE + 0x04,
                revision="0.1",
                revision_bits=(
                    RevisionBits("minor", _C6_EFUSE + 0x0C, 18, width=4),
                    RevisionBits("major", _C6_EFUSE + 0x0C, 22, width=2),
                ),
                fixed=MappingProxyType({_C6_EFUSE + 0x04: 0xFFFE << 16}),  # MAC_EXT, for EUI-64
                flash_size=16 * MIB,
                download_banner=(
                    "ESP-ROM:esp32c6-20220919\r\nBuild:Sep 19 2022\r\n"
                    "rst:0x1 (POWERON),boot:0x4 (DOWNLOAD(USB/UART0/SDIO_REI_FEO))\r\n"
                    "waiting for download\r\n"
                ),
            ),
        )
    }
)


def chip_named(name: str) -> Chip:
    """Return the row of `name`; raise `BadBoardSetting` where there is none."""
    chip = CHIPS.get(name)
    if chip is None:
        raise BadBoardSetting(f"There is no virtual {name!r}: it can be {', '.join(CHIPS)}.")
    return chip
