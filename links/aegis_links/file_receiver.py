"""
Receiving one transfer into a file or into memory.

A file grows as `NAME.part`, which a later transfer of the same file continues. It gets its name
when every byte is there, the SHA-256 is right and the disk has it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from aegis_protocol.failures.link import (
    DigestMismatch,
    FrameError,
    SizeMismatch,
    TransferNotWritten,
)
from aegis_protocol.frames import (
    TransferAck,
    TransferData,
    TransferDone,
    TransferEnd,
    TransferResume,
)

from aegis_links.tasks import in_thread
from aegis_links.transfer_mailbox import Mailbox

FLUSH_BYTES: Final = 256 * 1024
"""How much is written, and acknowledged, at once; far below the sender's window."""

Progress = Callable[[int], None]


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def partial_size(path: Path) -> int:
    """Return how many bytes of `path` an earlier, unfinished transfer has left."""
    try:
        return partial_path(path).stat().st_size
    except FileNotFoundError:
        return 0


class Sink(Protocol):
    """Where the bytes go. OSErrors are the caller's to translate."""

    @property
    def held_bytes(self) -> int: ...

    def open(self) -> None:
        """Find out what is there already."""

    def write(self, data: bytes) -> None: ...

    def restart(self) -> None:
        """Throw away what is held and begin anew."""

    def sha256(self) -> str: ...

    def finish(self) -> None:
        """Give it its name."""

    def close(self) -> None: ...


async def receive_into(
    mailbox: Mailbox,
    sink: Sink,
    *,
    size_bytes: int,
    sha256: str,
    on_progress: Progress,
    stall_s: float,
) -> None:
    """Receive what TransferPort.receive_to describes."""
    try:
        await in_thread(sink.open)
        if sink.held_bytes > size_bytes:
            await in_thread(sink.restart)
        run = _Run(mailbox, sink, size_bytes, sha256, on_progress)
        try:
            await run.receive(stall_s)
        finally:
            run.keep()
    except OSError as exc:
        raise TransferNotWritten(f"The file can't be written: {exc.strerror}.") from exc
    finally:
        sink.close()


class _Run:
    """Where a receiver stands."""

    def __init__(
        self,
        mailbox: Mailbox,
        sink: Sink,
        size_bytes: int,
        sha256: str,
        on_progress: Progress,
    ) -> None:
        self._mailbox = mailbox
        self._sink = sink
        self._size_bytes = size_bytes
        self._sha256 = sha256
        self._on_progress = on_progress
        self._buffer = bytearray()
        self._resumed = sink.held_bytes > 0
        self._asked: int | None = None

    @property
    def _offset(self) -> int:
        return self._sink.held_bytes + len(self._buffer)

    async def receive(self, stall_s: float) -> None:
        if self._mailbox.missed:
            await self._ask()
        while True:
            frame = await self._mailbox.get(stall_s)
            match frame:
                case TransferData():
                    await self._take(frame)
                case TransferEnd():
                    if frame.offset != self._size_bytes:
                        raise SizeMismatch(
                            f"{self._size_bytes} bytes were announced, {frame.offset} were sent."
                        )
                    if self._offset != self._size_bytes:
                        await self._ask()
                    elif await self._verified():
                        await self._mailbox.send(
                            TransferDone(self._mailbox.number, self._size_bytes)
                        )
                        return
                case TransferResume() | TransferAck() | TransferDone():
                    raise FrameError("A sender asks for nothing.")

    def keep(self) -> None:
        """Write what came before a cut: the next transfer goes on from there."""
        data = bytes(self._buffer)
        self._buffer.clear()
        if data:
            self._sink.write(data)

    async def _flush(self) -> None:
        await in_thread(self.keep)

    async def _take(self, frame: TransferData) -> None:
        if frame.offset != self._offset:
            await self._ask()
            return
        if self._offset + len(frame.data) > self._size_bytes:
            raise SizeMismatch(f"{self._size_bytes} bytes were announced, and more were sent.")
        self._asked = None
        self._buffer += frame.data
        if len(self._buffer) >= FLUSH_BYTES or self._offset == self._size_bytes:
            await self._flush()
            await self._mailbox.send(TransferAck(self._mailbox.number, self._offset))
        self._on_progress(self._offset)

    async def _ask(self) -> None:
        """Ask for what comes next, once; what is under way from elsewhere is dropped."""
        if self._asked != self._offset:
            self._asked = self._offset
            await self._mailbox.send(TransferResume(self._mailbox.number, self._offset))

    async def _verified(self) -> bool:
        await self._flush()
        if await in_thread(self._sink.sha256) == self._sha256:
            await in_thread(self._sink.finish)
            return True
        await in_thread(self._sink.restart)
        if not self._resumed:
            raise DigestMismatch("What arrived has another SHA-256 than what was announced.")
        # What an earlier transfer has left may be of another file: once more, all of it.
        self._resumed = False
        await self._ask()
        return False


class FileSink:
    """`path.part`, and `path` in the end."""

    held_bytes = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_path(path)
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def open(self) -> None:
        # A symlink in the place of the partial file would be somebody else's file.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._partial, flags, 0o600), "r+b", buffering=0)
        while block := self._file.read(FLUSH_BYTES):
            self._digest.update(block)
            self.held_bytes += len(block)

    def write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._digest.update(view[:written])
            self.held_bytes += written
            view = view[written:]

    def restart(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.held_bytes = 0

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)

    def close(self) -> None:
        if self._file is not None and not self._file.closed:
            self._file.close()
            if self.held_bytes == 0:
                self._partial.unlink(missing_ok=True)


class MemorySink:
    """What is small enough to be held: a plan, a list."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def held_bytes(self) -> int:
        return len(self.data)

    def open(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.data += data

    def restart(self) -> None:
        self.data.clear()

    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
