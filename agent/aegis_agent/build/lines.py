"""A terminal's output as lines of text: escapes removed, overwritten text as it stands last."""

from __future__ import annotations

import re
from typing import Final

LINE_BYTES: Final = 8192
"""What is looked at of a line; a program that prints without end costs no more."""

ESCAPES: Final = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])"
)


class LineReader:
    """Takes output in any pieces, gives whole lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes."""
        *lines, rest = data.split(b"\n")
        whole = []
        for line in lines:
            if not self._skipping:
                whole.append(_text((self._rest + line)[:LINE_BYTES]))
            self._rest, self._skipping = b"", False
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > LINE_BYTES:
                whole.append(_text(self._rest[:LINE_BYTES]))
                self._rest, self._skipping = b"", True
        return whole

    def end(self) -> list[str]:
        """Return the last line, where no newline ended it."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


class EscapeFilter:
    """Removes escape sequences from a stream, also where a piece ends within one."""

    _LONGEST: Final = 256

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b""
        started = data.rfind(b"\x1b")
        if started >= 0 and len(data) - started < self._LONGEST:
            match = ESCAPES.match(data, started)
            if match is None:
                data, self._held = data[:started], data[started:]
        return ESCAPES.sub(b"", data)


def _text(raw: bytes) -> str:
    line = ESCAPES.sub(b"", raw).rstrip(b"\r")
    return line.rpartition(b"\r")[2].decode(errors="replace").rstrip()
