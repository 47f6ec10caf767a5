# SPDX-License-Identifier: GPL-2.0-or-later
"""
The memory around the core: which addresses of the chip are what, and the words that lie there.

RAM and the image's flash pages are as in silicon; what of the peripherals is not emulated is
memory that begins as zeros. The pages of live registers are left to the core.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from aegis_agent.virtual_board.image import Segment
from aegis_agent.virtual_board.peripherals import LiveRegisters
from aegis_agent.virtual_board.silicon import FLASH_PAGE_BYTES, PAGE_BYTES, Silicon, Span

# As Unicorn numbers them.
READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4


class Mapper(Protocol):
    """What of the emulator is needed here."""

    def mem_map(self, address: int, size: int, perms: int) -> None: ...

    def mem_map_ptr(self, address: int, size: int, perms: int, ptr: int) -> None: ...

    def mem_read(self, address: int, size: int) -> bytearray: ...

    def mem_write(self, address: int, data: bytes) -> None: ...


class Memory:
    """All that is mapped, with `loaded` in its place."""

    def __init__(
        self,
        emulator: Mapper,
        silicon: Silicon,
        loaded: Sequence[Segment],
        registers: LiveRegisters,
    ) -> None:
        self._emulator = emulator
        self._registers = registers
        self._mapped: list[tuple[Span, int]] = []
        self._shared: list[mmap.mmap] = []
        self._map_ram(silicon)
        for span in flash_pages(silicon, loaded):
            self._map(span, READ | EXECUTE)
        for span in silicon.peripherals:
            for plain in without(span, registers.pages):
                self._map(plain, READ | WRITE)
        for address, word in registers.preset.items():
            if not self.is_live(address):
                self.store(address, word)
        for segment in loaded:
            emulator.mem_write(segment.load_address, segment.data)
        self._mapped += [(Span(page, page + PAGE_BYTES), READ | WRITE) for page in registers.pages]

    def is_live(self, address: int) -> bool:
        """Return whether `address` is in a page of live registers."""
        return address & ~(PAGE_BYTES - 1) in self._registers.pages

    def allows(self, address: int, permission: int) -> bool:
        return any(
            span.holds(address) and permissions & permission for span, permissions in self._mapped
        )

    def word(self, address: int) -> int | None:
        """Return the word at `address`, wherever it begins; None where not all of it is memory."""
        if self.is_live(address) or not (self._is_mapped(address) and self._is_mapped(address + 3)):
            return None
        return int.from_bytes(self._emulator.mem_read(address, 4), "little")

    def load(self, address: int) -> int:
        """Return the word at `address`, which is mapped and a multiple of 4."""
        if self.is_live(address):
            return self._registers.read(address, 4)
        return int.from_bytes(self._emulator.mem_read(address, 4), "little")

    def store(self, address: int, word: int) -> None:
        """Write the word at `address`, which is mapped and a multiple of 4."""
        if self.is_live(address):
            self._registers.write(address, 4, word)
        else:
            self._emulator.mem_write(address, word.to_bytes(4, "little"))

    def _is_mapped(self, address: int) -> bool:
        return self.allows(address, READ)

    def _map(self, span: Span, permissions: int) -> None:
        self._emulator.mem_map(span.start, span.size_bytes, permissions)
        self._mapped.append((span, permissions))

    def _map_ram(self, silicon: Silicon) -> None:
        every = READ | WRITE | EXECUTE
        aliased = {alias.of for alias in silicon.aliases}
        for span in silicon.ram:
            if span not in aliased:
                self._map(span, every)
                continue
            memory = mmap.mmap(-1, span.size_bytes)
            self._shared.append(memory)
            at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            starts = [span.start, *(alias.start for alias in silicon.aliases if alias.of == span)]
            for start in starts:
                self._emulator.mem_map_ptr(start, span.size_bytes, every, at)
                self._mapped.append((Span(start, start + span.size_bytes), every))


def flash_pages(silicon: Silicon, loaded: Sequence[Segment]) -> Iterator[Span]:
    """Yield the flash pages in which `loaded` lie, neighbours joined."""
    pages: set[int] = set()
    for segment in loaded:
        if any(window.holds(segment.load_address) for window in silicon.flash_windows):
            first = segment.span.start // FLASH_PAGE_BYTES
            pages.update(range(first, (segment.span.end - 1) // FLASH_PAGE_BYTES + 1))
    start: int | None = None
    for page in sorted(pages):
        if start is None:
            start = page
        if page + 1 not in pages:
            yield Span(start * FLASH_PAGE_BYTES, (page + 1) * FLASH_PAGE_BYTES)
            start = None


def without(span: Span, pages: Sequence[int]) -> Iterator[Span]:
    """Yield what is left of `span` without `pages`, which are sorted."""
    start = span.start
    for page in pages:
        if span.holds(page):
            if start < page:
                yield Span(start, page)
            start = page + PAGE_BYTES
    if start < span.end:
        yield Span(start, span.end)
