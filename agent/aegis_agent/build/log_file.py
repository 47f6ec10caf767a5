"""build.log: what the terminal showed, from its start, up to a bound."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_LOG_BYTES: Final = 64 << 20
_CUT: Final = b"\r\n[the rest of the output is not kept]\r\n"


class LogFile:
    """A context; `append` never fails for size, it stops keeping."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")
        self._left = MAX_LOG_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._file.close()

    def move_to(self, path: Path) -> None:
        """Give the log, as far as it goes, the name that it keeps; nothing is appended then."""
        self._file.close()
        self._left = 0
        self._path.rename(path)

    def append(self, data: bytes) -> None:
        if self._left <= 0:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(_CUT)
