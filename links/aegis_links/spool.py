"""
What a terminal or console has said, on disk: written once, read by many, each at its own pace.

A spool is a folder of segments, plain files named by the offset of their first byte. When it has
grown to its capacity the oldest segment goes, and who wants bytes of it gets an explicit gap. A
marker file tells that nothing more will come. Nothing a reader does makes the writer wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

CAPACITY_BYTES: Final = 256 * 1024 * 1024
MIN_CAPACITY_BYTES: Final = 64 * 1024
SEGMENTS: Final = 16
READ_BYTES: Final = 16 * 1024

_SUFFIX: Final = ".segment"
_END_NAME: Final = "end"
_COPY_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes from `offset` on."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """The bytes from `start` up to `stop`, without it, are gone."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing comes after `offset`."""

    offset: int


@dataclass(slots=True)
class _Segment:
    start: int
    path: Path


class Spool:
    """
    directory       made if it is missing; one that holds a spool is opened again, as it was left
    capacity_bytes  at most this much stands on the disk; a sixteenth of it goes at a time

    `append` and `read` touch the page cache for some microseconds and are not async. One thread.
    """

    def __init__(self, directory: Path, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = max(capacity_bytes, MIN_CAPACITY_BYTES) // SEGMENTS
        self._watchers: list[asyncio.Event] = []
        self._closed = False
        self._reader: tuple[int, BinaryIO] | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = sorted(directory.glob(f"*{_SUFFIX}"))
        self._segments = deque(_Segment(int(path.stem), path) for path in found)
        self.finished = (directory / _END_NAME).exists()
        """Whether nothing more will come."""
        self.end_offset = 0
        """How many bytes were ever appended."""
        if self._segments:
            last = self._segments[-1]
            self.end_offset = last.start + last.path.stat().st_size
        else:
            self._begin_segment()
        self._writer = self._segments[-1].path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def start_offset(self) -> int:
        """The first byte that is still kept."""
        return self._segments[0].start

    def append(self, data: bytes) -> None:
        """Write `data` and wake whoever waits for it. ValueError after `finish`."""
        if self.finished:
            raise ValueError("the spool is finished")
        view = memoryview(data)
        while view:
            last = self._segments[-1]
            room = last.start + self._segment_bytes - self.end_offset
            if room <= 0:
                self._rotate()
                continue
            written = self._writer.write(view[:room])
            self.end_offset += written
            view = view[written:]
        self._wake()

    def finish(self) -> None:
        """Tell readers that this was all. May be called twice."""
        if not self.finished:
            self.finished = True
            (self._directory / _END_NAME).touch()
            self._wake()

    def close(self) -> None:
        """Give back the files; what was spooled stays on the disk. Readers see the end."""
        self.finish()
        self._closed = True
        self._writer.close()
        self._close_reader()

    def read(self, offset: int, max_bytes: int = READ_BYTES) -> Piece | Gap | End | None:
        """
        Return what stands at `offset`: at most `max_bytes` of it, a gap where it is gone, the end,
        or None where it may still come. ValueError for an offset beyond what was appended.
        """
        if not 0 <= offset <= self.end_offset:
            raise ValueError(f"offset {offset} is not within {self.end_offset} bytes")
        if offset < self.start_offset:
            return Gap(offset, self.start_offset)
        if offset == self.end_offset:
            return End(offset) if self.finished else None
        segment = self._segment_of(offset)
        file = self._open_reader(segment)
        file.seek(offset - segment.start)
        piece = Piece(offset, file.read(max_bytes))
        if self._closed:
            self._close_reader()
        return piece

    async def next(self, offset: int, max_bytes: int = READ_BYTES) -> Piece | Gap | End:
        """As `read`, but waits for what may still come."""
        with self.watched_by(asyncio.Event()) as grown:
            while (found := self.read(offset, max_bytes)) is None:
                await grown.wait()
                grown.clear()
        return found

    @contextmanager
    def watched_by(self, watcher: asyncio.Event) -> Iterator[asyncio.Event]:
        """Set `watcher` each time there is more to read, or the end, while the body runs."""
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def copy_to(self, path: Path) -> None:
        """Write everything that is kept into one file. Blocks: call it in a thread."""
        with path.open("wb") as out:
            for segment in list(self._segments):
                with segment.path.open("rb") as part:
                    while block := part.read(_COPY_BYTES):
                        out.write(block)

    def _begin_segment(self) -> None:
        path = self._directory / f"{self.end_offset:020d}{_SUFFIX}"
        path.touch(mode=0o600)
        self._segments.append(_Segment(self.end_offset, path))

    def _rotate(self) -> None:
        self._writer.close()
        self._begin_segment()
        self._writer = self._segments[-1].path.open("ab", buffering=0)
        while len(self._segments) > SEGMENTS:
            oldest = self._segments.popleft()
            if self._reader is not None and self._reader[0] == oldest.start:
                self._close_reader()
            oldest.path.unlink()

    def _segment_of(self, offset: int) -> _Segment:
        for segment in reversed(self._segments):
            if segment.start <= offset:
                return segment
        raise LookupError(f"no segment holds offset {offset}")

    def _open_reader(self, segment: _Segment) -> BinaryIO:
        if self._reader is not None and self._reader[0] == segment.start:
            return self._reader[1]
        self._close_reader()
        file = segment.path.open("rb", buffering=0)
        self._reader = (segment.start, file)
        return file

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()
