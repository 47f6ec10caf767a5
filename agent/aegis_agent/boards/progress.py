"""How far a flash has come, told at a rate that a peer can follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from aegis_protocol.manifest import FlashImage

Progress = Callable[[str, int, int, str], None]
"""Called with a phase, bytes done, bytes in all (0: not known), and a detail."""

_EVERY_S: Final = 0.2


class FlashProgress:
    """
    Makes one line of progress of what is said image by image, and passes it on.

    Phases, each told at once: connected (detail: the chip), erase, write (detail: the image).
    While writing, five times a second at most; the end is always told, with done equal to total.

    images  in the order in which they are written
    """

    def __init__(self, images: Sequence[FlashImage], tell: Progress) -> None:
        self._images = images
        self._tell = tell
        self._total = sum(image.size_bytes for image in images)
        self._told_at = 0.0

    def connected(self, description: str) -> None:
        self._tell("connected", 0, 0, description)

    def erasing(self) -> None:
        self._tell("erase", 0, 0, "")

    def wrote(self, index: int, part: float) -> None:
        """The image `index` is on the flash up to `part` of it, from 0 to 1."""
        before = sum(image.size_bytes for image in self._images[:index])
        done = before + int(part * self._images[index].size_bytes)
        now = time.monotonic()
        # The end is told by `finished`, once all is verified.
        if done < self._total and now - self._told_at >= _EVERY_S:
            self._told_at = now
            self._tell("write", done, self._total, self._images[index].name)

    def finished(self) -> None:
        self._tell("write", self._total, self._total, "")
