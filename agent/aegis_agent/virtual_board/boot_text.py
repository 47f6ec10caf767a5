# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the ROM of each chip prints when it boots from its flash, as captured from real boards.

The ROM's code itself is not here and is not executed: its words are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from aegis_agent.virtual_board.image import Image

_SPI_MODES: Final = {0: "QIO", 1: "QOUT", 2: "DIO", 3: "DOUT"}
_CLOCK_DIVIDERS: Final = {0: 2, 1: 3, 2: 4, 15: 1}


class ResetCause(Enum):
    """Why the chip starts. What the reset pin does counts as power on, as on real chips."""

    POWER_ON = "power_on"
    SOFTWARE = "software"
    WATCHDOG = "watchdog"


@dataclass(frozen=True, slots=True)
class _Words:
    """
    head      what stands before the reset line
    boot      the strapping pins' part of the reset line
    flash     the lines between reset line and segments; `{mode}` and `{divider}` are filled in
    load      one line per segment, `{address}` and `{length}` filled in
    """

    head: tuple[str, ...]
    causes: Mapping[ResetCause, str]
    boot: str
    flash: tuple[str, ...]
    load: str = "load:0x{address:08x},len:0x{length:x}"


def _causes(power_on: str, software: str, watchdog: str) -> Mapping[ResetCause, str]:
    return MappingProxyType(
        {
            ResetCause.POWER_ON: power_on,
            ResetCause.SOFTWARE: software,
            ResetCause.WATCHDOG: watchdog,
        }
    )


_WORDS: Final[Mapping[str, _Words]] = MappingProxyType(
    {
        "esp32": _Words(
            head=("ets Jul 29 2019 12:21:46", ""),
            causes=_causes("0x1 (POWERON_RESET)", "0xc (SW_CPU_RESET)", "0x10 (RTCWDT_RTC_RESET)"),
            boot="0x13 (SPI_FAST_FLASH_BOOT)",
            flash=(
                "configsip: 0, SPIWP:0xee",
                "clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00",
                "mode:{mode}, clock div:{divider}",
            ),
            load="load:0x{address:08x},len:{length}",
        ),
        "esp32p4": _Words(
            head=("ESP-ROM:esp32p4-eco2-20240710", "Build:Jul 10 2024"),
            causes=_causes("0x1 (POWERON)", "0x3 (SW_SYS_RESET)", "0x7 (HP_SYS_HP_WDT_RESET)"),
            boot="0x30f (SPI_FAST_FLASH_BOOT)",
            flash=("SPI mode:{mode}, clock div:{divider}",),
        ),
        "esp32c3": _Words(
            head=("ESP-ROM:esp32c3-api1-20210207", "Build:Feb  7 2021"),
            causes=_causes("0x1 (POWERON)", "0x3 (RTC_SW_SYS_RST)", "0x7 (TG0WDT_SYS_RST)"),
            boot="0xd (SPI_FAST_FLASH_BOOT)",
            flash=("SPIWP:0xee", "mode:{mode}, clock div:{divider}"),
        ),
        "esp32c6": _Words(
            head=("ESP-ROM:esp32c6-20220919", "Build:Sep 19 2022"),
            causes=_causes("0x1 (POWERON)", "0x3 (LP_SW_HPSYS)", "0x7 (TG0_WDT_HPSYS)"),
            boot="0xc (SPI_FAST_FLASH_BOOT)",
            flash=("SPIWP:0xee", "mode:{mode}, clock div:{divider}"),
        ),
    }
)


def greeting(chip: str, cause: ResetCause) -> list[str]:
    """Return the lines up to the one with the reset's cause."""
    words = _WORDS[chip]
    return [*words.head, f"rst:{words.causes[cause]},boot:{words.boot}"]


def loading(chip: str, bootloader: Image) -> list[str]:
    """Return the lines with which the ROM loads the bootloader."""
    words = _WORDS[chip]
    flash = (
        line.format(
            mode=_SPI_MODES.get(bootloader.spi_mode, "DIO"),
            divider=_CLOCK_DIVIDERS.get(bootloader.spi_speed, 2),
        )
        for line in words.flash
    )
    load = (
        words.load.format(address=segment.load_address, length=len(segment.data))
        for segment in bootloader.segments
        if segment.load_address
    )
    return [*flash, *load, f"entry 0x{bootloader.entry:08x}"]


def invalid_header(first_word: bytes) -> str:
    """Return what the ROM says, again and again, when no image begins with `first_word`."""
    return f"invalid header: 0x{int.from_bytes(first_word, 'little'):08x}"
