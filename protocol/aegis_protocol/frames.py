"""
The binary frames on `pty`, `serial`, `source` and `firmware`. All numbers are big-endian.

    pty, serial        stream u32, kind u8, then by kind
        1 output  ->   offset u64, bytes         the stream's bytes from that offset on
        2 input   <-   bytes                     for the program's terminal or the board
        3 resize  <-   cols u16, rows u16
        4 resume  <-   offset u64                send from here; nothing flows before the first
        5 gap     ->   from u64, to u64          bytes that are no longer kept
        6 end     ->   offset u64                the stream's total length; nothing follows
        7 ack     <-   offset u64                everything before it was consumed

    source, firmware   transfer u32, kind u8, offset u64, bytes
        1 data    ->   the file's bytes from that offset on, at least one
        2 end     ->   offset is the size, the bytes are the file's SHA-256
        3 resume  <-   send from offset; no bytes
        4 ack     <-   everything before offset is held; no bytes
        5 abort   <->  the bytes are an error body as JSON, at most 4 KiB
        6 done    <-   offset is the size: the file is whole, verified and has its name

`->` is from whoever has the stream or file, `<-` from whoever wants it. An `ack` opens the
sender's window: at most STREAM_WINDOW_BYTES or TRANSFER_WINDOW_BYTES are sent beyond it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, TypeAlias

from pydantic import ValidationError

from aegis_protocol.channels import MAX_ERROR_BYTES, MAX_MESSAGE_BYTES
from aegis_protocol.errors import ErrorBody
from aegis_protocol.failures.link import FrameError

STREAM_WINDOW_BYTES: Final = 1_048_576
TRANSFER_WINDOW_BYTES: Final = 2_097_152

_U32_MAX: Final = 2**32 - 1
_U64_MAX: Final = 2**64 - 1
_STREAM_HEAD: Final = struct.Struct(">IB")
_TRANSFER_HEAD: Final = struct.Struct(">IBQ")
_OFFSET: Final = struct.Struct(">Q")
_GAP: Final = struct.Struct(">QQ")
_RESIZE: Final = struct.Struct(">HH")
_SHA256_BYTES: Final = 32


class StreamKind(IntEnum):
    OUTPUT = 1
    INPUT = 2
    RESIZE = 3
    RESUME = 4
    GAP = 5
    END = 6
    ACK = 7


class TransferKind(IntEnum):
    DATA = 1
    END = 2
    RESUME = 3
    ACK = 4
    ABORT = 5
    DONE = 6


@dataclass(frozen=True, slots=True)
class StreamOutput:
    kind: ClassVar = StreamKind.OUTPUT
    stream: int
    offset: int
    data: bytes

    def encode(self) -> bytes:
        head = _stream_head(self.stream, self.kind)
        return _bounded(head + _offset(self.offset, len(self.data)) + self.data)


@dataclass(frozen=True, slots=True)
class StreamInput:
    kind: ClassVar = StreamKind.INPUT
    stream: int
    data: bytes

    def encode(self) -> bytes:
        return _bounded(_stream_head(self.stream, self.kind) + self.data)


@dataclass(frozen=True, slots=True)
class StreamResize:
    kind: ClassVar = StreamKind.RESIZE
    stream: int
    cols: int
    rows: int

    def encode(self) -> bytes:
        if not (1 <= self.cols <= 65_535 and 1 <= self.rows <= 65_535):
            raise FrameError("A terminal has 1 to 65,535 columns and rows.")
        return _stream_head(self.stream, self.kind) + _RESIZE.pack(self.cols, self.rows)


@dataclass(frozen=True, slots=True)
class StreamResume:
    kind: ClassVar = StreamKind.RESUME
    stream: int
    offset: int

    def encode(self) -> bytes:
        return _stream_head(self.stream, self.kind) + _offset(self.offset)


@dataclass(frozen=True, slots=True)
class StreamGap:
    """The bytes from `start` up to `stop`, without it, are no longer kept."""

    kind: ClassVar = StreamKind.GAP
    stream: int
    start: int
    stop: int

    def encode(self) -> bytes:
        if not 0 <= self.start < self.stop <= _U64_MAX:
            raise FrameError("A gap begins before it ends.")
        return _stream_head(self.stream, self.kind) + _GAP.pack(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    kind: ClassVar = StreamKind.END
    stream: int
    offset: int

    def encode(self) -> bytes:
        return _stream_head(self.stream, self.kind) + _offset(self.offset)


@dataclass(frozen=True, slots=True)
class StreamAck:
    kind: ClassVar = StreamKind.ACK
    stream: int
    offset: int

    def encode(self) -> bytes:
        return _stream_head(self.stream, self.kind) + _offset(self.offset)


StreamFrame: TypeAlias = (
    StreamOutput | StreamInput | StreamResize | StreamResume | StreamGap | StreamEnd | StreamAck
)


@dataclass(frozen=True, slots=True)
class TransferData:
    kind: ClassVar = TransferKind.DATA
    transfer: int
    offset: int
    data: bytes

    def encode(self) -> bytes:
        if not self.data:
            raise FrameError("A data frame carries at least one byte.")
        return _bounded(
            _transfer_head(self.transfer, self.kind, self.offset, len(self.data)) + self.data
        )


@dataclass(frozen=True, slots=True)
class TransferEnd:
    kind: ClassVar = TransferKind.END
    transfer: int
    offset: int
    sha256: bytes

    def encode(self) -> bytes:
        if len(self.sha256) != _SHA256_BYTES:
            raise FrameError("The digest of an end frame has 32 bytes.")
        return _transfer_head(self.transfer, self.kind, self.offset) + self.sha256


@dataclass(frozen=True, slots=True)
class TransferResume:
    kind: ClassVar = TransferKind.RESUME
    transfer: int
    offset: int

    def encode(self) -> bytes:
        return _transfer_head(self.transfer, self.kind, self.offset)


@dataclass(frozen=True, slots=True)
class TransferAck:
    kind: ClassVar = TransferKind.ACK
    transfer: int
    offset: int

    def encode(self) -> bytes:
        return _transfer_head(self.transfer, self.kind, self.offset)


@dataclass(frozen=True, slots=True)
class TransferAbort:
    kind: ClassVar = TransferKind.ABORT
    transfer: int
    offset: int
    error: ErrorBody

    def encode(self) -> bytes:
        """Facts and then the ends of the texts are left out where the body would be too large."""
        body = self.error.model_dump_json().encode()
        if len(body) > MAX_ERROR_BYTES:
            short = {"facts": {}, "message": self.error.message[:256], "remedy": ""}
            body = self.error.model_copy(update=short).model_dump_json().encode()
        return _transfer_head(self.transfer, self.kind, self.offset) + body


@dataclass(frozen=True, slots=True)
class TransferDone:
    kind: ClassVar = TransferKind.DONE
    transfer: int
    offset: int

    def encode(self) -> bytes:
        return _transfer_head(self.transfer, self.kind, self.offset)


TransferFrame: TypeAlias = (
    TransferData | TransferEnd | TransferResume | TransferAck | TransferAbort | TransferDone
)


def decode_stream_frame(message: bytes | str) -> StreamFrame:
    """Read a message of `pty` or `serial`; FrameError for anything that is no frame."""
    data = _binary(message, _STREAM_HEAD.size)
    stream, number = _STREAM_HEAD.unpack_from(data)
    body = data[_STREAM_HEAD.size :]
    match number:
        case StreamKind.OUTPUT:
            if len(body) < _OFFSET.size:
                raise FrameError("An output frame ends before its offset does.")
            offset = _unpack_offset(body[: _OFFSET.size], len(body) - _OFFSET.size)
            return StreamOutput(stream, offset, body[_OFFSET.size :])
        case StreamKind.INPUT:
            return StreamInput(stream, body)
        case StreamKind.RESIZE:
            cols, rows = _exactly(_RESIZE, body)
            if not (cols and rows):
                raise FrameError("A terminal has at least one column and one row.")
            return StreamResize(stream, cols, rows)
        case StreamKind.RESUME:
            return StreamResume(stream, _unpack_offset(body))
        case StreamKind.GAP:
            start, stop = _exactly(_GAP, body)
            if start >= stop:
                raise FrameError("A gap begins before it ends.")
            return StreamGap(stream, start, stop)
        case StreamKind.END:
            return StreamEnd(stream, _unpack_offset(body))
        case StreamKind.ACK:
            return StreamAck(stream, _unpack_offset(body))
        case _:
            raise FrameError(f"There is no stream frame of kind {number}.")


def decode_transfer_frame(message: bytes | str) -> TransferFrame:
    """Read a message of `source` or `firmware`; FrameError for anything that is no frame."""
    data = _binary(message, _TRANSFER_HEAD.size)
    transfer, number, offset = _TRANSFER_HEAD.unpack_from(data)
    body = data[_TRANSFER_HEAD.size :]
    match number:
        case TransferKind.DATA:
            if not body or offset + len(body) > _U64_MAX:
                raise FrameError("A data frame carries at least one byte, below offset 2^64.")
            return TransferData(transfer, offset, body)
        case TransferKind.END:
            if len(body) != _SHA256_BYTES:
                raise FrameError("The digest of an end frame has 32 bytes.")
            return TransferEnd(transfer, offset, body)
        case TransferKind.ABORT:
            if len(body) > MAX_ERROR_BYTES:
                raise FrameError(
                    f"The error of an abort frame has at most {MAX_ERROR_BYTES} bytes."
                )
            try:
                return TransferAbort(transfer, offset, ErrorBody.model_validate_json(body))
            except ValidationError as exc:
                raise FrameError("The error of an abort frame is no error body.") from exc
        case TransferKind.RESUME | TransferKind.ACK | TransferKind.DONE:
            if body:
                raise FrameError("A frame has bytes after its offset that mean nothing.")
            return _PLAIN[TransferKind(number)](transfer, offset)
        case _:
            raise FrameError(f"There is no transfer frame of kind {number}.")


_PLAIN: Final[dict[TransferKind, type[TransferResume | TransferAck | TransferDone]]] = {
    TransferKind.RESUME: TransferResume,
    TransferKind.ACK: TransferAck,
    TransferKind.DONE: TransferDone,
}


def _binary(message: bytes | str, at_least: int) -> bytes:
    if isinstance(message, str):
        raise FrameError("This channel carries binary frames, not text.")
    if len(message) < at_least:
        raise FrameError(f"A frame has at least {at_least} bytes, this one has {len(message)}.")
    return _bounded(message)


def _bounded(frame: bytes) -> bytes:
    if len(frame) > MAX_MESSAGE_BYTES:
        raise FrameError(f"A frame has at most {MAX_MESSAGE_BYTES} bytes, not {len(frame)}.")
    return frame


def _stream_head(stream: int, kind: StreamKind) -> bytes:
    if not 0 <= stream <= _U32_MAX:
        raise FrameError("A stream's number has 32 bits.")
    return _STREAM_HEAD.pack(stream, kind)


def _transfer_head(transfer: int, kind: TransferKind, offset: int, length: int = 0) -> bytes:
    if not (0 <= transfer <= _U32_MAX and 0 <= offset <= _U64_MAX - length):
        raise FrameError("A transfer's number has 32 bits and its offset 64.")
    return _TRANSFER_HEAD.pack(transfer, kind, offset)


def _offset(offset: int, length: int = 0) -> bytes:
    if not 0 <= offset <= _U64_MAX - length:
        raise FrameError("An offset has 64 bits.")
    return _OFFSET.pack(offset)


def _unpack_offset(body: bytes, length: int = 0) -> int:
    (offset,) = _exactly(_OFFSET, body)
    if offset + length > _U64_MAX:
        raise FrameError("A frame reaches beyond offset 2^64.")
    return offset


def _exactly(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise FrameError(f"The body of this frame has {layout.size} bytes, not {len(body)}.")
    return layout.unpack(body)
