# SPDX-License-Identifier: GPL-2.0-or-later
"""
Where things lie inside each chip, as far as booting and running an image needs it.

Addresses are those of the chips' reference manuals and of esptool's memory maps. A new chip is a
new row. `executes` is False where no emulator runs the chip's instructions (Xtensa): then the
row only says which load addresses an image may have. What a chip shows its loader's callers
stands in `chips`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PAGE_BYTES: Final = 0x1000
FLASH_PAGE_BYTES: Final = 0x10000


@dataclass(frozen=True, slots=True)
class Span:
    """Addresses from `start` up to, but without, `end`."""

    start: int
    end: int

    def holds(self, address: int, size_bytes: int = 1) -> bool:
        return self.start <= address and address + size_bytes <= self.end

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Alias:
    """A second address of memory that is one in silicon."""

    start: int
    of: Span


@dataclass(frozen=True, slots=True)
class Silicon:
    """
    One chip.

    flash_windows   where the cache shows the flash; read and execute
    ram             each span is memory of its own; read, write and execute
    peripherals     registers: those not emulated keep what is written and read 0 until then
    rom             the chip's own code, which nobody may copy: a jump there is a fault
    has_atomics     the core has the A extension
    reset_register  writing `reset_bit` to it restarts the chip
    cpu_hz          what the cycle counter counts, by wall time
    """

    name: str
    image_chip_id: int
    bootloader_offset: int
    flash_windows: tuple[Span, ...]
    ram: tuple[Span, ...]
    executes: bool = True
    has_atomics: bool = True
    aliases: tuple[Alias, ...] = ()
    peripherals: tuple[Span, ...] = ()
    rom: tuple[Span, ...] = ()
    uart0: int = 0
    systimer: int = 0
    efuse_mac: int = 0
    reset_register: int = 0
    reset_bit: int = 0
    cpu_hz: int = 160_000_000


_ESP32 = Silicon(
    name="esp32",
    image_chip_id=0,
    bootloader_offset=0x1000,
    executes=False,
    flash_windows=(Span(0x3F400000, 0x3F800000), Span(0x400D0000, 0x40400000)),
    ram=(
        Span(0x3FF80000, 0x3FF82000),
        Span(0x3FFAE000, 0x40000000),
        Span(0x40070000, 0x400C2000),
        Span(0x50000000, 0x50002000),
    ),
)

_P4_SRAM = Span(0x4FF00000, 0x4FFC0000)
_ESP32P4 = Silicon(
    name="esp32p4",
    image_chip_id=18,
    bootloader_offset=0x2000,
    flash_windows=(Span(0x40000000, 0x44000000),),
    ram=(_P4_SRAM, Span(0x30100000, 0x30102000), Span(0x50108000, 0x50110000)),
    aliases=(Alias(0x8FF00000, _P4_SRAM),),
    peripherals=(
        Span(0x20000000, 0x20010000),
        Span(0x20800000, 0x20810000),
        Span(0x3FF00000, 0x3FF20000),
        Span(0x50000000, 0x50108000),
        Span(0x50110000, 0x50130000),
    ),
    rom=(Span(0x4FC00000, 0x4FC20000),),
    uart0=0x500CA000,
    systimer=0x500E2000,
    efuse_mac=0x5012D044,
    reset_register=0x50110008,
    reset_bit=1 << 1,
    cpu_hz=360_000_000,
)

_C3_SRAM = Span(0x3FC80000, 0x3FCE0000)
_ESP32C3 = Silicon(
    name="esp32c3",
    image_chip_id=5,
    bootloader_offset=0x0,
    has_atomics=False,
    flash_windows=(Span(0x3C000000, 0x3C800000), Span(0x42000000, 0x42800000)),
    ram=(_C3_SRAM, Span(0x4037C000, 0x40380000), Span(0x50000000, 0x50002000)),
    aliases=(Alias(0x40380000, _C3_SRAM),),
    peripherals=(Span(0x60000000, 0x600D2000),),
    rom=(Span(0x40000000, 0x40060000), Span(0x3FF00000, 0x3FF20000)),
    uart0=0x60000000,
    systimer=0x60023000,
    efuse_mac=0x60008844,
    reset_register=0x60008000,
    reset_bit=1 << 31,
)

_ESP32C6 = Silicon(
    name="esp32c6",
    image_chip_id=13,
    bootloader_offset=0x0,
    flash_windows=(Span(0x42000000, 0x43000000),),
    ram=(Span(0x40800000, 0x40880000), Span(0x50000000, 0x50004000)),
    peripherals=(Span(0x20000000, 0x20003000), Span(0x60000000, 0x60100000)),
    rom=(Span(0x40000000, 0x40050000),),
    uart0=0x60000000,
    systimer=0x6000A000,
    efuse_mac=0x600B0844,
    reset_register=0x600B1034,
    reset_bit=1 << 31,
)

SILICON: Final[Mapping[str, Silicon]] = MappingProxyType(
    {row.name: row for row in (_ESP32, _ESP32P4, _ESP32C3, _ESP32C6)}
)
