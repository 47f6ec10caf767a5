"""
A pack: the missing blobs, one after the other, plain or as one zlib stream (RFC 1950).

No more is unpacked than is asked for, so a pack that would grow without end costs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from aegis_protocol.failures.source import UploadIncomplete

CHUNK_BYTES: Final = 256 * 1024


class PackReader:
    """Reads a pack from its start; `compression` is `none` or `deflate`."""

    def __init__(self, path: Path, compression: str) -> None:
        if compression not in ("none", "deflate"):
            raise UploadIncomplete(
                f"this agent does not unpack {compression!r}",
                remedy="Send the pack as `none` or `deflate`.",
            )
        self._file: BinaryIO = path.open("rb")
        self._inflate = zlib.decompressobj() if compression == "deflate" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._file.close()

    def take(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the next `size_bytes` in chunks; UploadIncomplete when there are fewer."""
        while size_bytes:
            chunk = self._read(min(size_bytes, CHUNK_BYTES))
            if not chunk:
                raise UploadIncomplete("the pack ends before the last file that it should hold")
            size_bytes -= len(chunk)
            yield chunk

    def expect_end(self) -> None:
        """UploadIncomplete when something is left over."""
        if self._read(1):
            raise UploadIncomplete("the pack holds more than the files that were missing")

    def _read(self, at_most: int) -> bytes:
        if self._inflate is None:
            return self._file.read(at_most)
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK_BYTES)
            try:
                data = self._inflate.decompress(packed, at_most)
            except zlib.error as exc:
                raise UploadIncomplete(f"the pack can't be unpacked: {exc}") from exc
            if data:
                return data
            if not packed:
                raise UploadIncomplete("the pack was cut")
        return b""
