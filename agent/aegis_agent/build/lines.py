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
        data, self._held = self._held + data, b""
        at = 0
        while (at := data.find(b"\x1b", at)) >= 0:
            match = ESCAPES.match(data, at)
            if match is not None:
                at = match.end()
            elif len(data) - at < self._LONGEST:
                # It may go on in the next piece.
                data, self._held = data[:at], data[at:]
            else:
                at += 1
        return ESCAPES.sub(b"", data)


def _text(raw: bytes) -> str:
    line = ESCAPES.sub(b"", raw).rstrip(b"\r")
    return line.rpartition(b"\r")[2].decode(errors="replace").rstrip()
