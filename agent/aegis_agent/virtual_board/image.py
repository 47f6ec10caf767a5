# SPDX-License-Identifier: GPL-2.0-or-later
"""
The image format of ESP chips: read one from the flash, and say what is wrong with it.

Header of 24 bytes, segments of `<II` address, length and their data, a checksum byte that ends a
16-byte line, and, where the header says so, the SHA-256 of all that. The complaints are worded as
ESP-IDF's bootloader words them (components/bootloader_support, esp_image_format.c), for people
and tools know those.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aegis_agent.virtual_board.silicon import FLASH_PAGE_BYTES, Silicon, Span

ReadFlash = Callable[[int, int], bytes]

MAGIC: Final = 0xE9
CHECKSUM_SEED: Final = 0xEF
MOST_SEGMENTS: Final = 16
MOST_SEGMENT_BYTES: Final = 16 * 1024 * 1024
# Load addresses below are reserved for padding: mapped, they would hide every NULL access.
FIRST_LOADED_ADDRESS: Final = 0x10000000

_HEADER: Final = struct.Struct("<BBBBI")
_HEADER_BYTES: Final = 24
_SEGMENT: Final = struct.Struct("<II")
_SHA256_BYTES: Final = 32
_APP_DESC_MAGIC: Final = 0xABCD5432
_APP_DESC_BYTES: Final = 256


class ImageFault(Exception):
    """An image that a chip would refuse; the text is what its bootloader says."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`data` belongs at `load_address`; in the flash it stands at `flash_offset`."""

    load_address: int
    flash_offset: int
    data: bytes

    @property
    def is_loaded(self) -> bool:
        return self.load_address >= FIRST_LOADED_ADDRESS and len(self.data) > 0

    @property
    def span(self) -> Span:
        return Span(self.load_address, self.load_address + len(self.data))


@dataclass(frozen=True, slots=True)
class AppDescription:
    """What `esp_app_desc_t` says, as printable ASCII; `elf_sha256` is lower-case hex."""

    project: str
    version: str
    idf_version: str
    elf_sha256: str


@dataclass(frozen=True, slots=True)
class Image:
    """
    An image as it stands in the flash.

    spi_mode, spi_speed   the header's codes: 0-3 QIO, QOUT, DIO, DOUT; 0, 1, 2, 15 for 40, 26,
                          20, 80 MHz
    checksum_read, checksum_made   equal in a whole image
    sha256_stored   None where the header says that none was appended
    """

    offset: int
    entry: int
    spi_mode: int
    spi_speed: int
    chip_id: int
    segments: tuple[Segment, ...]
    size_bytes: int
    checksum_read: int
    checksum_made: int
    sha256_stored: bytes | None
    sha256_made: bytes

    def description(self) -> AppDescription | None:
        """Return the descriptor with which the first segment begins, where there is one."""
        first = self.segments[0].data if self.segments else b""
        if len(first) < _APP_DESC_BYTES or int.from_bytes(first[:4], "little") != _APP_DESC_MAGIC:
            return None
        return AppDescription(
            version=_text(first[16:48]),
            project=_text(first[48:80]),
            idf_version=_text(first[112:144]),
            elf_sha256=first[144:176].hex(),
        )


def read_image(flash: ReadFlash, offset: int, *, most_bytes: int) -> Image:
    """
    Return the image at `offset`, at most `most_bytes` long; its digests are computed, not judged.

    Raises
    ------
    ImageFault   no image, or none that could be followed to its end
    """
    header = _exactly(flash, offset, _HEADER_BYTES)
    magic, count, spi_mode, size_and_speed, entry = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise ImageFault(f"image at 0x{offset:x} has invalid magic byte (nothing flashed here?)")
    if count > MOST_SEGMENTS:
        raise ImageFault(f"image at 0x{offset:x} segment count {count} exceeds max {MOST_SEGMENTS}")
    segments: list[Segment] = []
    at = _HEADER_BYTES
    checksum = CHECKSUM_SEED
    for _ in range(count):
        address, length = _SEGMENT.unpack(_exactly(flash, offset + at, _SEGMENT.size))
        at += _SEGMENT.size
        if length % 4 or length >= MOST_SEGMENT_BYTES:
            raise ImageFault(f"invalid segment length 0x{length:x}")
        if at + length > most_bytes:
            raise ImageFault(
                f"Image length {at + length} doesn't fit in partition length {most_bytes}"
            )
        data = _exactly(flash, offset + at, length)
        segments.append(Segment(address, offset + at, data))
        checksum ^= _xor(data)
        at += length
    at = (at + 16) & ~15
    whole = _exactly(flash, offset, at)
    stored: bytes | None = None
    size_bytes = at
    if header[23] == 1:
        stored = _exactly(flash, offset + at, _SHA256_BYTES)
        size_bytes += _SHA256_BYTES
    if size_bytes > most_bytes:
        raise ImageFault(f"Image length {size_bytes} doesn't fit in partition length {most_bytes}")
    return Image(
        offset=offset,
        entry=entry,
        spi_mode=spi_mode,
        spi_speed=size_and_speed & 15,
        chip_id=int.from_bytes(header[12:14], "little"),
        segments=tuple(segments),
        size_bytes=size_bytes,
        checksum_read=whole[-1],
        checksum_made=checksum,
        sha256_stored=stored,
        sha256_made=hashlib.sha256(whole).digest(),
    )


def check_chip(image: Image, silicon: Silicon) -> None:
    """Raise `ImageFault` where `image` was built for another chip."""
    if image.chip_id != silicon.image_chip_id:
        raise ImageFault(
            f"mismatch chip ID, expected {silicon.image_chip_id}, found {image.chip_id}"
        )


def check_segment(index: int, segment: Segment, silicon: Silicon) -> None:
    """Raise `ImageFault` where `segment`, the image's number `index`, can't be loaded there."""
    if not segment.is_loaded:
        return
    span = segment.span
    if any(window.holds(span.start) for window in silicon.flash_windows):
        if segment.flash_offset % FLASH_PAGE_BYTES != span.start % FLASH_PAGE_BYTES:
            raise ImageFault(
                f"Segment {index} load address 0x{span.start:08x}, "
                f"doesn't match data 0x{segment.flash_offset:08x}"
            )
        if any(window.holds(span.start, span.size_bytes) for window in silicon.flash_windows):
            return
    elif any(ram.holds(span.start, span.size_bytes) for ram in loadable_memory(silicon)):
        return
    raise ImageFault(
        f"Segment {index} 0x{span.start:08x}-0x{span.end:08x} invalid: bad load address range"
    )


def check_overlap(image: Image) -> None:
    """Raise `ImageFault` where two segments claim one address."""
    loaded = sorted(
        (
            (segment.span, index)
            for index, segment in enumerate(image.segments)
            if segment.is_loaded
        ),
        key=lambda pair: pair[0].start,
    )
    for (before, _), (span, index) in pairwise(loaded):
        if span.start < before.end:
            raise ImageFault(
                f"Segment {index} 0x{span.start:08x}-0x{span.end:08x} invalid: "
                "overlaps another segment"
            )


def check_digests(image: Image) -> None:
    """Raise `ImageFault` where checksum or SHA-256 show that the image is not whole."""
    if image.checksum_made != image.checksum_read:
        raise ImageFault(
            f"Checksum failed. Calculated 0x{image.checksum_made:x} read 0x{image.checksum_read:x}"
        )
    if image.sha256_stored is not None and image.sha256_stored != image.sha256_made:
        raise ImageFault("Image hash failed - image is corrupt")


def loadable_memory(silicon: Silicon) -> tuple[Span, ...]:
    """Return every span of RAM under every address that it has."""
    second = (Span(alias.start, alias.start + alias.of.size_bytes) for alias in silicon.aliases)
    return (*silicon.ram, *second)


def _exactly(flash: ReadFlash, offset: int, size_bytes: int) -> bytes:
    data = flash(offset, size_bytes) if size_bytes else b""
    if len(data) != size_bytes:
        raise ImageFault(f"bootloader_flash_read failed at 0x{offset:08x}")
    return data


def _xor(data: bytes) -> int:
    """Return the exclusive or of all bytes (their number is a multiple of 4)."""
    folded = int.from_bytes(data, "little")
    bits = len(data) * 8
    # Halving keeps it linear in C: a Python loop over 1 MiB would take 50 ms.
    while bits > 8:
        half = (bits // 16 + bits // 8 % 2) * 8
        folded = (folded >> half) ^ (folded & ((1 << half) - 1))
        bits = half
    return folded


def _text(field: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in field.split(b"\0", 1)[0])
