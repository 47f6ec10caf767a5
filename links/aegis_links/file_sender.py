"""Sending one file as a transfer: read ahead of the window, checked that it stayed the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Protocol

from aegis_protocol.channels import PAYLOAD_BYTES
from aegis_protocol.failures.link import FrameError, SentFileChanged, SizeMismatch, TransferError
from aegis_protocol.frames import (
    TRANSFER_WINDOW_BYTES,
    TransferAck,
    TransferData,
    TransferDone,
    TransferEnd,
    TransferResume,
)

from aegis_links.shared_blocks import Block, block_of, identity_of
from aegis_links.tasks import in_thread
from aegis_links.transfer_mailbox import LiveFrame, Mailbox

MAX_RESUMES: Final = 64

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Sent:
    """What the receiver has now, verified. sha256: hex."""

    size_bytes: int
    sha256: str


async def send_source(
    mailbox: Mailbox,
    source: Path | bytes,
    *,
    from_offset: int,
    sha256: str | None,
    on_progress: Progress,
    stall_s: float,
) -> Sent:
    """Send `source` from that offset on, or from where the receiver asks; see TransferPort."""
    with ExitStack() as stack:
        opened: _Source = _Memory(source) if isinstance(source, bytes) else _File(source, stack)
        size_bytes = opened.size_bytes
        digest = await in_thread(opened.sha256) if sha256 is None else sha256
        run = _Run(mailbox.number, from_offset, size_bytes)
        while True:
            frame = mailbox.poll()
            if frame is None and run.may_send:
                data = await opened.read(run.offset)
                await mailbox.send(TransferData(mailbox.number, run.offset, data))
                run.offset += len(data)
                continue
            if frame is None and run.offset == size_bytes and not run.end_sent:
                opened.check_unchanged()
                await mailbox.send(TransferEnd(mailbox.number, size_bytes, bytes.fromhex(digest)))
                run.end_sent = True
                continue
            run.take(frame or await mailbox.get(stall_s))
            on_progress(run.acked)
            if run.done:
                return Sent(size_bytes, digest)


class _Run:
    """Where a sender stands."""

    def __init__(self, number: int, offset: int, size_bytes: int) -> None:
        self.offset = self.acked = offset
        self.end_sent = False
        self.done = False
        self._number = number
        self._size_bytes = size_bytes
        self._resumes = 0
        self._check(offset)

    @property
    def may_send(self) -> bool:
        room = self.offset - self.acked < TRANSFER_WINDOW_BYTES
        return room and self.offset < self._size_bytes

    def take(self, frame: LiveFrame) -> None:
        self._check(frame.offset)
        match frame:
            case TransferAck():
                self.acked = max(self.acked, min(frame.offset, self.offset))
            case TransferResume():
                self._resumes += 1
                if self._resumes > MAX_RESUMES:
                    raise TransferError(f"The peer began anew {MAX_RESUMES} times.")
                self.offset = self.acked = frame.offset
                self.end_sent = False
            case TransferDone():
                if frame.offset != self._size_bytes:
                    raise SizeMismatch("The peer was done before the end.", transfer=self._number)
                self.acked = frame.offset
                self.done = True
            case TransferData() | TransferEnd():
                raise FrameError("A receiver sends no data.")

    def _check(self, offset: int) -> None:
        if not 0 <= offset <= self._size_bytes:
            raise SizeMismatch(
                f"Offset {offset} lies beyond the end, which is {self._size_bytes}.",
                transfer=self._number,
                size_bytes=self._size_bytes,
            )


class _Source(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def sha256(self) -> str: ...

    async def read(self, offset: int) -> bytes:
        """Return a payload's worth from there on, at least one byte."""

    def check_unchanged(self) -> None: ...


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def sha256(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    async def read(self, offset: int) -> bytes:
        return self._data[offset : offset + PAYLOAD_BYTES]

    def check_unchanged(self) -> None:
        pass


class _File:
    """Read in blocks that all senders of the file share; see shared_blocks."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._file: FileIO = stack.enter_context(path.open("rb", buffering=0))
        self._stat = os.fstat(self._file.fileno())
        self._block = Block(0, b"")

    @property
    def size_bytes(self) -> int:
        return self._stat.st_size

    def sha256(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    async def read(self, offset: int) -> bytes:
        block = self._block
        if not 0 <= offset - block.start < len(block.data):
            self._block = block = await block_of(self._file, identity_of(self._stat), offset)
        at = offset - block.start
        # A file that grew has more in its last block than is to be sent.
        data = block.data[at : at + min(PAYLOAD_BYTES, self.size_bytes - offset)]
        if not data:
            raise self._changed()
        return data

    def check_unchanged(self) -> None:
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> SentFileChanged:
        return SentFileChanged(
            f"{self._path.name} changed while it was sent.", name=self._path.name
        )
