"""A board's console as text to be searched: whole characters, plain line ends, no colours."""

from __future__ import annotations

import codecs
import re
from typing import Final

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?$")
_MAX_ESCAPE_CHARS: Final = 256


class ConsoleText:
    """Feed it bytes cut anywhere; it gives the text that is certain by now."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        held = len(text)
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _MAX_ESCAPE_CHARS))
        if unfinished:
            held = unfinished.start()
        elif text.endswith("\r"):
            held -= 1  # perhaps the first half of a line's end
        self._held, text = text[held:], text[:held]
        return _ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
