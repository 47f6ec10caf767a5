"""What a flash is asked to write, and whether that can be: before a board is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_protocol.failures.board import ImageInvalid
from aegis_protocol.manifest import FlashImage, FlashSettings

SECTOR_BYTES: Final = 4096
MAX_FLASH_BYTES: Final = 256 * 1024 * 1024
"""The largest flash that esptool knows."""


@dataclass(frozen=True)
class FlashJob:
    """What to write: images with their files, not overlapping. baud: of the port meanwhile."""

    images: tuple[tuple[FlashImage, Path], ...]
    target: str
    settings: FlashSettings
    baud: int
    erase_all: bool
    elf_sha256: str | None


def check_images(images: Sequence[tuple[FlashImage, Path]]) -> None:
    """
    Raise ImageInvalid unless `images` are files of their size, each at the start of a sector,
    within the largest flash there is, and no two in the same sector: erasing for one would
    damage the other.
    """
    if not images:
        raise ImageInvalid("there is no image to flash")
    free_from, before = 0, ""
    for image, path in sorted(images, key=lambda pair: pair[0].offset):
        if image.size_bytes == 0:
            raise ImageInvalid(f"{image.name} is empty")
        if image.offset % SECTOR_BYTES:
            raise ImageInvalid(f"{image.name} at {image.offset:#x} does not begin a sector")
        if image.offset < free_from:
            raise ImageInvalid(f"{before} reaches into {image.name} at {image.offset:#x}")
        end = image.offset + image.size_bytes
        if end > MAX_FLASH_BYTES:
            raise ImageInvalid(f"{image.name} ends at {end:#x}, beyond any board's flash")
        free_from, before = -(-end // SECTOR_BYTES) * SECTOR_BYTES, image.name
        try:
            size_bytes = path.stat().st_size
        except OSError as exc:
            raise ImageInvalid(f"{image.name} is not there any more") from exc
        if size_bytes != image.size_bytes:
            raise ImageInvalid(f"{image.name} is not as long as its manifest says")
