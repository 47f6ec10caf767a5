# SPDX-License-Identifier: GPL-2.0-or-later
"""
From reset to the application, acted: what the ROM and ESP-IDF's bootloader do and print.

Neither is executed. `find_app` looks at the flash as they do, in their order, and gives either
the application to start or the complaint with which the chip stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aegis_agent.virtual_board import boot_text, partitions
from aegis_agent.virtual_board.boot_text import ResetCause
from aegis_agent.virtual_board.image import (
    MAGIC,
    Image,
    ImageFault,
    ReadFlash,
    Segment,
    check_chip,
    check_digests,
    check_overlap,
    check_segment,
    read_image,
)
from aegis_agent.virtual_board.silicon import Silicon

Clock = Callable[[], int]

# The ROM prints its complaint until the watchdog ends it, eight times or so.
_ROM_REPEATS: Final = 8
_MOST_APP_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class App:
    """The application to start; `lines` were printed on the way to it."""

    image: Image
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """
    Nothing to start.

    lines      what the chip prints at once
    repeated   what it then prints line by line, at a low rate
    cause      what it is reset by in the end
    """

    lines: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    cause: ResetCause = ResetCause.WATCHDOG


def find_app(
    silicon: Silicon, flash: ReadFlash, cause: ResetCause, elapsed_ms: Clock
) -> App | Refused:
    """
    Follow the flash from the ROM to the application.

    elapsed_ms   milliseconds since the reset, as ESP-IDF's log lines have them
    """
    said = boot_text.greeting(silicon.name, cause)
    first_word = flash(silicon.bootloader_offset, 4)
    if first_word[:1] != bytes([MAGIC]):
        complaint = boot_text.invalid_header(first_word.ljust(4, b"\xff"))
        return Refused(tuple(said), repeated=(complaint,) * _ROM_REPEATS)
    try:
        bootloader = read_image(
            flash,
            silicon.bootloader_offset,
            most_bytes=partitions.TABLE_OFFSET - silicon.bootloader_offset,
        )
    except ImageFault:
        return Refused((*said, "Invalid image block, can't boot.", "ets_main.c 329 "))
    said += boot_text.loading(silicon.name, bootloader)
    if bootloader.checksum_made != bootloader.checksum_read:
        said[-1:] = [
            f"csum err:0x{bootloader.checksum_made:x}!=0x{bootloader.checksum_read:x}",
            "ets_main.c 384 ",
        ]
        return Refused(tuple(said))
    if bootloader.sha256_stored not in (None, bootloader.sha256_made):
        said[-1:-1] = ["SHA-256 comparison failed:", "Attempting to boot anyway..."]
    log = _Log(said, elapsed_ms)
    return _second_stage(silicon, flash, log)


@dataclass(frozen=True, slots=True)
class _Log:
    """Lines in the form of ESP-IDF's log: `E (31) boot: …`."""

    lines: list[str]
    elapsed_ms: Clock

    def add(self, level: str, tag: str, text: str) -> None:
        self.lines.append(f"{level} ({self.elapsed_ms()}) {tag}: {text}")


def _second_stage(silicon: Silicon, flash: ReadFlash, log: _Log) -> App | Refused:
    try:
        table = partitions.read_table(flash)
    except partitions.TableFault as fault:
        log.add("E", "flash_parts", str(fault))
        log.add("E", "boot", "Failed to verify partition table")
        log.add("E", "boot", "load partition table error!")
        return Refused(tuple(log.lines), cause=ResetCause.SOFTWARE)
    for partition in partitions.bootable(table, flash):
        try:
            most_bytes = min(partition.size_bytes, _MOST_APP_BYTES)
            image = read_image(flash, partition.offset, most_bytes=most_bytes)
            check_chip(image, silicon)
            for index, segment in enumerate(image.segments):
                log.add("I", "esp_image", _segment_line(index, segment, silicon))
                check_segment(index, segment, silicon)
            check_overlap(image)
            check_digests(image)
        except ImageFault as fault:
            log.add("E", "esp_image", str(fault))
            if partition.subtype:
                log.add(
                    "E", "boot", f"OTA app partition slot {partition.subtype & 15} is not bootable"
                )
            else:
                log.add("E", "boot", "Factory app partition is not bootable")
        else:
            log.add("I", "boot", f"Loaded app from partition at offset 0x{image.offset:x}")
            return App(image, tuple(log.lines))
    log.add("E", "boot", "No bootable app partitions in the partition table")
    return Refused(tuple(log.lines), cause=ResetCause.SOFTWARE)


def _segment_line(index: int, segment: Segment, silicon: Silicon) -> str:
    how = ""
    if segment.is_loaded:
        mapped = any(window.holds(segment.load_address) for window in silicon.flash_windows)
        how = " map" if mapped else " load"
    size_bytes = len(segment.data)
    return (
        f"segment {index}: paddr={segment.flash_offset:08x} vaddr={segment.load_address:08x} "
        f"size={size_bytes:05x}h ({size_bytes:6}){how}"
    )
