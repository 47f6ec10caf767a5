"""What a build's output tells while it runs: phases and counts, errors, sizes, what it lacked."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from aegis_protocol.manifest import SizeReport

from aegis_agent.build.diagnostics import DiagnosticReader
from aegis_agent.build.lines import LineReader
from aegis_agent.build.request import OnProgress

_PROGRESS_EVERY_S: Final = 0.1

_SIZE: Final = re.compile(
    r"^(?P<what>RAM|Flash):\s+\[.*\]\s+[\d.]+%\s+"
    r"\(used (?P<used>\d+) bytes from (?P<total>\d+) bytes\)"
)
_COMPILING: Final = re.compile(
    r"^(?:Compiling|Archiving|Indexing|Generating)\s+(?P<what>\S+)|"
    r"^\[(?P<done>\d+)/(?P<total>\d+)\]\s+(?P<step>.*)$"
)
_VERBOSE: Final = re.compile(r"^\S*(?:gcc|g\+\+|clang) .*\s-c\s")
_PHASES: Final = (
    (re.compile(r"^Linking\s+(?P<what>\S+)"), "link"),
    (re.compile(r"^Checking size\s+(?P<what>\S+)"), "size"),
)


@dataclass(frozen=True)
class TooLarge:
    """used and allowed, in bytes; allowed is 0 where it was not said."""

    what: str
    used: int
    allowed: int


_TOO_LARGE: Final = re.compile(
    r"^Error: The (?P<what>program|data) size \((?P<used>\d+) bytes\) is greater than maximum "
    r"allowed \((?P<allowed>\d+) bytes\)"
)
_IDF_TOO_LARGE: Final = re.compile(
    r"too small for binary (?P<what>\S+) size (?P<used>0x[0-9a-fA-F]+)"
)
_IDF_SIZE: Final = re.compile(
    r"^\S+ binary size (?P<used>0x[0-9a-fA-F]+) bytes\. Smallest app partition is "
    r"(?P<total>0x[0-9a-fA-F]+) bytes"
)
_COMPLAINT: Final = re.compile(r"^(?:Error: |\w+(?:Error|Exception):(?: |$))")
_OVERFLOWED: Final = re.compile(r"region [`'](?P<what>[\w.]+)' overflowed by (?P<used>\d+) bytes")


class OutputReading:
    """Feed it the build's output; it reports progress and keeps what was said."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.diagnostics = DiagnosticReader()
        self.size: SizeReport | None = None
        self.too_large: TooLarge | None = None
        self.complaint = ""
        """PlatformIO's own `Error: …` or `SomethingError: …`, the first."""
        self._on_progress = on_progress
        self._lines = LineReader()
        self._compiled = 0
        self._phase = ""
        self._told_at = 0.0

    def feed(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._line(line)

    def end(self) -> None:
        for line in self._lines.end():
            self._line(line)

    def tell(self, phase: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """Report progress, unless the last report of this phase was a moment ago."""
        now = time.monotonic()
        if phase == self._phase and now - self._told_at < _PROGRESS_EVERY_S:
            return
        self._phase, self._told_at = phase, now
        self._on_progress(phase, done, total, detail[:200])

    def _line(self, line: str) -> None:
        self.diagnostics.line(line)
        if match := _COMPILING.match(line):
            self._compiling(match)
        elif _VERBOSE.match(line):
            self._compiled += 1
            self.tell("compile", self._compiled)
        elif match := _SIZE.match(line):
            self._sized(match)
        elif match := _TOO_LARGE.match(line):
            self.too_large = TooLarge(match["what"], int(match["used"]), int(match["allowed"]))
        elif match := _OVERFLOWED.search(line):
            self.too_large = self.too_large or TooLarge(match["what"], int(match["used"]), 0)
        elif match := _IDF_TOO_LARGE.search(line):
            self.too_large = TooLarge(match["what"], int(match["used"], 16), 0)
        elif match := _IDF_SIZE.match(line):
            now = self.size or SizeReport()
            used, total = int(match["used"], 16), int(match["total"], 16)
            self.size = now.model_copy(update={"flash_used": used, "flash_total": total})
        elif _COMPLAINT.match(line):
            self.complaint = self.complaint or line[:500]
        else:
            for pattern, phase in _PHASES:
                if match := pattern.match(line):
                    self.tell(phase, detail=match["what"])

    def _compiling(self, match: re.Match[str]) -> None:
        if match["done"]:
            # Ninja's, of ESP-IDF: it knows how many there are.
            self.tell("compile", int(match["done"]), int(match["total"]), match["step"])
            return
        self._compiled += 1
        self.tell("compile", self._compiled, 0, match["what"])

    def _sized(self, match: re.Match[str]) -> None:
        now = self.size or SizeReport()
        used, total = int(match["used"]), int(match["total"])
        if match["what"] == "RAM":
            self.size = now.model_copy(update={"ram_used": used, "ram_total": total})
        else:
            self.size = now.model_copy(update={"flash_used": used, "flash_total": total})
