"""
What a console must show, and what it must not: patterns over a stream that comes in pieces.

Patterns are Python's, searched in the text without colours, `^` and `$` at every line. They are
matched across the borders of pieces, within the last WINDOW_CHARS of text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aegis_client.console_text import ConsoleText
from aegis_client.failures import UsageInvalid

WINDOW_CHARS: Final = 32_768

_ELF_SHA256: Final = re.compile(r"ELF (?:file )?SHA-?256:?\s+([0-9a-f]{8,64})(?![0-9a-f])")


@dataclass(frozen=True)
class Match:
    """What was found. expected: whether it is what was waited for, or a failure."""

    expected: bool
    pattern: str
    text: str


def compiled(pattern: str, option: str) -> re.Pattern[str]:
    """Raises UsageInvalid for what is no regular expression."""
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as exc:
        raise UsageInvalid(f"{option} {pattern!r} is no regular expression: {exc}") from exc


class ConsoleWatch:
    """Watches one console. elf_sha256: the digest (or its beginning) that it last printed."""

    def __init__(self, expect: str | None = None, fail: Sequence[str] = ()) -> None:
        self._patterns = [(True, compiled(expect, "--expect"))] if expect is not None else []
        self._patterns += [(False, compiled(pattern, "--fail")) for pattern in fail]
        self._text = ConsoleText()
        self._window = ""
        self.elf_sha256: str | None = None

    def feed(self, data: bytes) -> Match | None:
        """Take the next bytes; return the first match in the order of the text, if any."""
        self._window += self._text.feed(data)
        self._look_for_elf()
        found = [
            (match.start(), expected, pattern.pattern, match[0])
            for expected, pattern in self._patterns
            if (match := pattern.search(self._window))
        ]
        # Text that was searched may still be the beginning of a match: a window of it stays.
        if len(self._window) > WINDOW_CHARS:
            self._window = self._window[-WINDOW_CHARS:]
        if not found:
            return None
        _, expected, pattern, text = min(found)
        return Match(expected, pattern, text)

    def _look_for_elf(self) -> None:
        for match in _ELF_SHA256.finditer(self._window):
            # At the very end of what came, more digits may follow.
            if match.end() < len(self._window):
                self.elf_sha256 = match[1]
