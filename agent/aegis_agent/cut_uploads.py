"""
Uploads that were cut: what has arrived waits for the same pack to come again, and goes on there.

The same source, planned anew, lacks the same files, and they make the same pack. Of a pack that
does not come again, the files that are whole in it are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from aegis_protocol.source import plan_digest

from aegis_agent.source import PlannedSource

MOST: Final = 4
MOST_BYTES: Final = 512 * 1024 * 1024
KEPT_S: Final = 900.0
YIELD_S: Final = 8.0
"""So long may another connection still receive the same, which is lost and does not know it yet."""

Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, eq=False)
class CutUpload:
    """sha256: of the whole pack, of which `path` is to be the name; size_bytes: of what came."""

    identity: str
    planned: PlannedSource
    sha256: str
    compression: str
    path: Path
    size_bytes: int


class CutUploads:
    """What is here has one owner at a time: whoever was given it, or this."""

    def __init__(self) -> None:
        self._kept: dict[Key, CutUpload] = {}
        self._receiving: dict[Key, asyncio.Event] = {}

    @asynccontextmanager
    async def receiving(self, identity: str, sha256: str, fresh: Path) -> AsyncIterator[Path]:
        """Give the path to receive that pack to: one that has a part of it already, or `fresh`."""
        key, over = (identity, sha256), asyncio.Event()
        other = self._receiving.get(key)
        if other is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(YIELD_S):
                    await other.wait()
        self._receiving[key] = over
        try:
            cut = self._kept.pop(key, None)
            yield fresh if cut is None else cut.path
        finally:
            if self._receiving.get(key) is over:
                del self._receiving[key]
            over.set()

    def keep(self, cut: CutUpload) -> list[CutUpload]:
        """Keep what has arrived, and return what is given up for it, or it where it is too much."""
        key = (cut.identity, cut.sha256)
        given_up = [self._kept.pop(key)] if key in self._kept else []
        self._kept[key] = cut
        while len(self._kept) > MOST or self._kept_bytes() > MOST_BYTES:
            given_up.append(self._kept.pop(next(iter(self._kept))))
        return given_up

    def outdated(self, identity: str, source_sha256: str) -> list[CutUpload]:
        """Give up and return what was cut of other source of `identity` than this."""
        given_up = [
            cut
            for cut in self._kept.values()
            if cut.identity == identity and plan_digest(cut.planned.plan) != source_sha256
        ]
        for cut in given_up:
            self.give_up(cut)
        return given_up

    def give_up(self, cut: CutUpload) -> bool:
        """Tell whether `cut` was still kept; it is not any more."""
        key = (cut.identity, cut.sha256)
        if self._kept.get(key) is not cut:
            return False
        del self._kept[key]
        return True

    def _kept_bytes(self) -> int:
        return sum(cut.size_bytes for cut in self._kept.values())
