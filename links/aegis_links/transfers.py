"""
Files over `source` and `firmware`: many at once on one channel, in both directions.

A port alone reads its channel and hands each frame to the transfer that it belongs to. Sender
and receiver may begin in any order: frames for a number that nobody knows yet are dropped and
remembered, and the receiver then asks for them again.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.failures.link import (
    FrameError,
    LinkClosed,
    SizeMismatch,
    TransferAborted,
    TransferError,
    TransferRefused,
)
from aegis_protocol.frames import TransferAbort, decode_transfer_frame

from aegis_links.channel import Channel
from aegis_links.file_receiver import FileSink, MemorySink, partial_size, receive_into
from aegis_links.file_sender import Sent, send_source
from aegis_links.tasks import TaskOwner
from aegis_links.transfer_mailbox import Mailbox

__all__ = ["MAX_MEMORY_BYTES", "MAX_TRANSFERS", "Sent", "TransferPort", "partial_size"]

MAX_TRANSFERS: Final = 16
MAX_MEMORY_BYTES: Final = 8 * 1024 * 1024
STALL_LIMIT_S: Final = 60.0
_REMEMBERED: Final = 64

Progress = Callable[[int], None]


def _ignore(offset_bytes: int) -> None:
    """The progress of who does not care."""


class TransferPort:
    """One end of a channel of files. Made by `over`; it alone reads the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._boxes: dict[int, Mailbox] = {}
        self._missed: OrderedDict[int, AegisError | None] = OrderedDict()
        self._refusal: AegisError | None = None
        self._tasks = TaskOwner()

    @classmethod
    @asynccontextmanager
    async def over(cls, channel: Channel) -> AsyncIterator[TransferPort]:
        port = cls(channel)
        port._tasks.start(port._read(), "transfer reader")
        try:
            yield port
        finally:
            port._end(LinkClosed("The transfers are over."))
            await port._tasks.cancel()

    def next_number(self) -> int:
        """Return a number that this port has not given away before."""
        return next(self._numbers)

    async def send_file(
        self,
        transfer: int,
        source: Path | bytes,
        *,
        from_offset: int = 0,
        sha256: str | None = None,
        on_progress: Progress = _ignore,
        stall_s: float = STALL_LIMIT_S,
    ) -> Sent:
        """
        Send `source`, and return when the receiver has verified it and given it its name.

        from_offset   where to begin; the receiver may ask for another place
        sha256        of the whole source in hex, if it is known: it saves reading it twice
        on_progress   called with how many bytes the receiver holds

        Raises
        ------
        SentFileChanged  the file is not what it was at the start
        SizeMismatch     there is no such offset in it
        TransferStalled  the receiver said nothing for `stall_s`
        TransferRefused  too many at once, or the number is in use
        the receiver's own error, where it gave up; the link's, where that ended
        FileNotFoundError and its like, where the source can't be read
        """
        with self._mailbox(transfer) as mailbox:
            return await send_source(
                mailbox,
                source,
                from_offset=from_offset,
                sha256=sha256,
                on_progress=on_progress,
                stall_s=stall_s,
            )

    async def receive_to(
        self,
        transfer: int,
        path: Path,
        *,
        size_bytes: int,
        sha256: str,
        on_progress: Progress = _ignore,
        stall_s: float = STALL_LIMIT_S,
    ) -> None:
        """
        Receive a file of that size and SHA-256 (hex) as `path`, whose folder exists.

        Continues a `path.part` that is there, and leaves one behind when it is cut.

        Raises
        ------
        DigestMismatch, SizeMismatch  it is not what was announced; nothing is left of it
        TransferNotWritten            the disk is full, or the folder can't be written
        TransferStalled, TransferRefused, the sender's error, the link's: as in send_file
        """
        with self._mailbox(transfer) as mailbox:
            await receive_into(
                mailbox,
                FileSink(path),
                size_bytes=size_bytes,
                sha256=sha256,
                on_progress=on_progress,
                stall_s=stall_s,
            )

    async def receive_bytes(
        self,
        transfer: int,
        *,
        size_bytes: int,
        sha256: str,
        on_progress: Progress = _ignore,
        stall_s: float = STALL_LIMIT_S,
    ) -> bytes:
        """Receive at most MAX_MEMORY_BYTES into memory; otherwise as `receive_to`."""
        if size_bytes > MAX_MEMORY_BYTES:
            raise SizeMismatch(
                f"A transfer of {size_bytes} bytes is too large to be held in memory.",
                limit_bytes=MAX_MEMORY_BYTES,
            )
        sink = MemorySink()
        with self._mailbox(transfer) as mailbox:
            await receive_into(
                mailbox,
                sink,
                size_bytes=size_bytes,
                sha256=sha256,
                on_progress=on_progress,
                stall_s=stall_s,
            )
        return bytes(sink.data)

    @contextmanager
    def _mailbox(self, number: int) -> Iterator[Mailbox]:
        """Take in what comes for `number`; tell the peer if the body fails."""
        if self._refusal is not None:
            raise self._refusal
        if number in self._boxes or len(self._boxes) >= MAX_TRANSFERS:
            raise TransferRefused(
                f"Transfer {number} can't begin: {len(self._boxes)} are under way.",
                transfer=number,
            )
        missed = number in self._missed
        mailbox = Mailbox(number, self._channel, missed=missed)
        aborted = self._missed.pop(number, None)
        if aborted is not None:
            mailbox.end(aborted)
        self._boxes[number] = mailbox
        try:
            yield mailbox
        except AegisError as exc:
            if not mailbox.given_up:
                self._abort(number, exc)
            raise
        except BaseException:
            self._abort(number, TransferAborted("The peer gave the transfer up."))
            raise
        finally:
            del self._boxes[number]

    def _abort(self, number: int, error: AegisError) -> None:
        if self._refusal is None:
            self._tasks.start(self._send_abort(number, error), "transfer abort")

    async def _send_abort(self, number: int, error: AegisError) -> None:
        with suppress(AegisError):  # the link may have ended meanwhile
            await self._channel.send(TransferAbort(number, 0, error.body()).encode())

    async def _read(self) -> None:
        refusal: AegisError = LinkClosed("The peer closed the channel.")
        try:
            async for message in self._channel:
                self._take(message)
        except FrameError as exc:
            refusal = exc
            await self._channel.close()
        except AegisError as exc:
            refusal = exc
        finally:
            self._end(refusal)

    def _take(self, message: bytes | str) -> None:
        frame = decode_transfer_frame(message)
        mailbox = self._boxes.get(frame.transfer)
        if mailbox is not None:
            if not mailbox.put(frame):
                mailbox.fail(TransferError("The peer sent more than the window allows."))
            return
        aborted = from_body(frame.error) if isinstance(frame, TransferAbort) else None
        self._missed[frame.transfer] = aborted or self._missed.get(frame.transfer)
        while len(self._missed) > _REMEMBERED:
            self._missed.popitem(last=False)

    def _end(self, refusal: AegisError) -> None:
        if self._refusal is None:
            self._refusal = refusal
            for mailbox in self._boxes.values():
                mailbox.end(refusal)
