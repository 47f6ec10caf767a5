"""
Terminals and consoles over `pty` and `serial`: many streams on one channel.

The agent serves a stream from its spool, the client views it. Nothing flows before the viewer's
first `resume`, which says from where: so a viewer that comes back on another link goes on where
it was. A viewer that reads slowly is waited for, a megabyte behind; the spool's writer is not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from aegis_protocol.channels import PAYLOAD_BYTES
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import FrameError, LinkClosed
from aegis_protocol.frames import (
    STREAM_WINDOW_BYTES,
    StreamAck,
    StreamEnd,
    StreamFrame,
    StreamGap,
    StreamInput,
    StreamOutput,
    StreamResize,
    StreamResume,
    decode_stream_frame,
)

from aegis_links.channel import Channel
from aegis_links.spool import End, Gap, Piece, Spool
from aegis_links.tasks import TaskOwner

__all__ = ["Spool", "StreamPort", "StreamViewer"]

ACK_BYTES: Final = 64 * 1024
"""How much a viewer takes before it says so; it also says so when it has caught up."""

_FRAME_COST_BYTES: Final = 64
_EARLY_RESUMES: Final = 64
_log = structlog.get_logger("aegis_links.streams")

OnInput = Callable[[bytes], None]
OnResize = Callable[[int, int], None]


class StreamPort:
    """One end of a channel of streams. Made by `over`; it alone reads the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ends: dict[int, _Served | StreamViewer] = {}
        self._early: OrderedDict[int, StreamResume] = OrderedDict()
        self._refusal: AegisError | None = None
        self._failure: AegisError | None = None
        self._tasks = TaskOwner()

    @classmethod
    @asynccontextmanager
    async def over(cls, channel: Channel) -> AsyncIterator[StreamPort]:
        port = cls(channel)
        port._tasks.start(port._read(), "stream reader")
        try:
            yield port
        finally:
            port._end(None)
            await port._tasks.cancel()

    async def serve(
        self,
        stream: int,
        spool: Spool,
        *,
        on_input: OnInput | None = None,
        on_resize: OnResize | None = None,
    ) -> None:
        """
        Send `spool` to the viewer at the other end, from where it asks, as often as it asks.

        Returns when the channel is closed: what has ended may be asked for again. Cancel it to
        stop before.

        on_input, on_resize   called with what the viewer typed and its new size; None: ignored

        Raises the link's error where that failed.
        """
        served = _Served(stream, on_input, on_resize)
        self._enter(stream, served)
        early = self._early.pop(stream, None)
        if early is not None:
            served.take(early)
        try:
            await served.run(self._channel, spool)
        finally:
            del self._ends[stream]

    @asynccontextmanager
    async def view(self, stream: int, *, from_offset: int = 0) -> AsyncIterator[StreamViewer]:
        """View a stream from that offset on, for as long as the body runs."""
        viewer = StreamViewer(stream, self._channel, from_offset)
        self._enter(stream, viewer)
        try:
            await self._channel.send(StreamResume(stream, from_offset).encode())
            yield viewer
        finally:
            del self._ends[stream]

    def _enter(self, stream: int, end: _Served | StreamViewer) -> None:
        if stream in self._ends:
            raise RuntimeError(f"stream {stream} is in use on this link")
        if self._refusal is not None:
            raise self._refusal
        self._ends[stream] = end

    async def _read(self) -> None:
        failure: AegisError | None = None
        try:
            async for message in self._channel:
                self._take(decode_stream_frame(message))
        except FrameError as exc:
            failure = exc
            await self._channel.close()
        except AegisError as exc:
            failure = exc
        finally:
            self._end(failure)

    def _take(self, frame: StreamFrame) -> None:
        end = self._ends.get(frame.stream)
        if end is not None:
            end.take(frame)
        elif isinstance(frame, StreamResume):
            # The viewer may know the stream before the task that serves it has begun.
            self._early[frame.stream] = frame
            while len(self._early) > _EARLY_RESUMES:
                self._early.popitem(last=False)

    def _end(self, failure: AegisError | None) -> None:
        if self._refusal is None:
            self._refusal = failure or LinkClosed("The channel is closed.")
            for end in self._ends.values():
                end.end(failure)


class _Served:
    """The agent's end of one stream."""

    def __init__(self, stream: int, on_input: OnInput | None, on_resize: OnResize | None) -> None:
        self._stream = stream
        self._on_input = on_input
        self._on_resize = on_resize
        self._resume: int | None = None
        self._acked = 0
        self._ended = False
        self._failure: AegisError | None = None
        self._told = asyncio.Event()  # by the viewer, the spool or the port

    def take(self, frame: StreamFrame) -> None:
        match frame:
            case StreamInput():
                self._call(self._on_input, frame.data)
            case StreamResize():
                self._call(self._on_resize, frame.cols, frame.rows)
            case StreamResume():
                self._resume = frame.offset
            case StreamAck():
                self._acked = max(self._acked, frame.offset)
            case StreamOutput() | StreamGap() | StreamEnd():
                raise FrameError("A viewer sends no output.")
        self._told.set()

    def end(self, failure: AegisError | None) -> None:
        self._ended, self._failure = True, failure
        self._told.set()

    async def run(self, channel: Channel, spool: Spool) -> None:
        offset: int | None = None  # None: before the first resume, and after the end
        with spool.watched_by(self._told):
            while not self._ended:
                if self._resume is not None:
                    offset = self._acked = min(self._resume, spool.end_offset)
                    self._resume = None
                found = None
                if offset is not None and offset - self._acked < STREAM_WINDOW_BYTES:
                    found = spool.read(offset)
                match found:
                    case Piece(offset=start, data=data):
                        await channel.send(StreamOutput(self._stream, start, data).encode())
                        offset = start + len(data)
                    case Gap(start=start, stop=stop):
                        await channel.send(StreamGap(self._stream, start, stop).encode())
                        offset = stop
                    case End(offset=total):
                        await channel.send(StreamEnd(self._stream, total).encode())
                        offset = None
                    case None:
                        await self._told.wait()
                        self._told.clear()
        if self._failure is not None:
            raise self._failure

    def _call(self, listener: Callable[..., None] | None, *args: object) -> None:
        try:
            if listener is not None:
                listener(*args)
        except Exception:  # noqa: BLE001 - one stream's defect must not end the others
            _log.exception("stream_listener.failed", stream=self._stream)


class StreamViewer:
    """
    The client's end of one stream: iterate over it once.

    Yields StreamOutput, each beginning where the one before ended, and StreamGap where bytes were
    lost on the agent for want of space. Ends after the stream's last byte, and only then: if the
    channel is closed before, LinkClosed is raised, or the error that the link failed with.
    """

    def __init__(self, stream: int, channel: Channel, from_offset: int) -> None:
        self.offset = from_offset
        """Where to view from on another link: after what was yielded last."""
        self._stream = stream
        self._channel = channel
        self._arrived = from_offset
        self._served = False  # what came before was on its way to an earlier viewer of this link
        self._acked = from_offset
        self._events: deque[StreamOutput | StreamGap | StreamEnd] = deque()
        self._held_bytes = 0
        self._failure: AegisError | None = None
        self._told = asyncio.Event()

    async def send_input(self, data: bytes) -> None:
        """Type `data`, however much it is."""
        for start in range(0, len(data), PAYLOAD_BYTES):
            piece = data[start : start + PAYLOAD_BYTES]
            await self._channel.send(StreamInput(self._stream, piece).encode())

    async def resize(self, cols: int, rows: int) -> None:
        await self._channel.send(StreamResize(self._stream, cols, rows).encode())

    async def __aiter__(self) -> AsyncIterator[StreamOutput | StreamGap]:
        while True:
            if not self._events or self.offset - self._acked >= ACK_BYTES:
                await self._acknowledge()
            while not self._events:
                if self._failure is not None:
                    raise self._failure
                await self._told.wait()
                self._told.clear()
            event = self._events.popleft()
            self._held_bytes -= _cost(event)
            match event:
                case StreamOutput(data=data):
                    self.offset += len(data)
                    yield event
                case StreamGap(stop=stop):
                    self.offset = stop
                    yield event
                case StreamEnd():
                    await self._acknowledge()
                    return

    def take(self, frame: StreamFrame) -> None:
        match frame:
            case StreamInput() | StreamResize() | StreamResume() | StreamAck():
                raise FrameError("Who serves a stream sends no input.")
            case StreamOutput(offset=start) | StreamGap(start=start) | StreamEnd(offset=start):
                if start > self._arrived:
                    if self._served:
                        raise FrameError(f"Stream {self._stream} leaves bytes out without a gap.")
                    return
        self._served = True
        match frame:
            case StreamOutput(offset=offset, data=data):
                fresh = data[self._arrived - offset :]
                if not fresh:
                    return
                self._put(StreamOutput(self._stream, self._arrived, fresh))
                self._arrived += len(fresh)
            case StreamGap(stop=stop):
                if stop > self._arrived:
                    self._put(StreamGap(self._stream, self._arrived, stop))
                    self._arrived = stop
            case StreamEnd():
                self._put(frame)

    def end(self, failure: AegisError | None) -> None:
        self._failure = failure or LinkClosed("The channel was closed before the stream ended.")
        self._told.set()

    def _put(self, event: StreamOutput | StreamGap | StreamEnd) -> None:
        self._held_bytes += _cost(event)
        if self._held_bytes > 2 * STREAM_WINDOW_BYTES:
            raise FrameError(f"The peer sends more of stream {self._stream} than the window.")
        self._events.append(event)
        self._told.set()

    async def _acknowledge(self) -> None:
        if self.offset > self._acked:
            self._acked = self.offset
            with suppress(AegisError):  # iteration itself tells how the link ended
                await self._channel.send(StreamAck(self._stream, self.offset).encode())


def _cost(event: StreamOutput | StreamGap | StreamEnd) -> int:
    size = len(event.data) if isinstance(event, StreamOutput) else 0
    return size + _FRAME_COST_BYTES
