"""
Reads a compiler's messages out of a build's output: GCC, its linker, and Python tracebacks of a
project's own scripts. Text in, `Diagnostic` out; nothing here knows of processes.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from aegis_protocol.manifest import Diagnostic

MAX_DIAGNOSTICS: Final = 2000
_PROJECT: Final = "/project/"

_GCC: Final = re.compile(
    r"^(?P<file>[^\s:*][^:]*?):(?P<line>\d+):(?:(?P<column>\d+):)?\s+"
    r"(?P<severity>fatal error|error|warning|note):\s+(?P<message>.*?)"
    r"(?:\s+\[(?P<flag>-W[^\]]*)\])?$"
)
# With line numbers in the ELF; without: `main.c:(.text.app_main+0x10): undefined …`.
_LINK_IN_FILE: Final = re.compile(
    r"^(?:\S*ld(?:\.bfd)?:\s+)?(?P<file>[^\s:][^:]*?):(?:(?P<line>\d+)|\([^)]*\)):\s+"
    r"(?P<message>(?:undefined reference|multiple definition|relocation truncated|"
    r"dangerous relocation|first defined).*)$"
)
_LINK: Final = re.compile(r"^\S*ld(?:\.bfd)?(?:\.exe)?:\s+(?P<message>.*)$")
_LINK_NOISE: Final = re.compile(r": in function |^warning: .*(?:NOTE|RWX)|^\S+\.o: in function")
_MISSING_HEADER: Final = re.compile(r"^(?P<header>\S+): No such file or directory$")
_BANNER: Final = re.compile(r"^\* Looking for (?P<header>\S+) dependency\?")
_SCRIPT: Final = re.compile(r'^\s*File "(?P<file>/project/[^"]+)", line (?P<line>\d+)')
_RAISED: Final = re.compile(r"^(?P<message>[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b.*)$")

_HINTS: Final = (
    (re.compile(r"^undefined reference to"), "Define it, or add the library that has it."),
    (re.compile(r"^multiple definition of"), "Define it in one file and declare it in the others."),
    (re.compile(r"^cannot find -l"), "Add the library to lib_deps, or correct its name."),
    (re.compile(r"overflowed by|will not fit in region"), "Make the program smaller."),
)


class DiagnosticReader:
    """
    Takes lines, keeps what they say is wrong.

    found      in the order of the output, each once, at most MAX_DIAGNOSTICS
    last_line  the last line with something in it
    """

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []
        self.last_line = ""
        self._seen: set[tuple[str, int, int, str]] = set()
        self._script: tuple[str, int] | None = None
        self._raised: tuple[str, int] | None = None

    @property
    def errors(self) -> list[Diagnostic]:
        return [one for one in self.found if one.severity == "error"]

    def line(self, text: str) -> None:
        """Take one line, free of escapes."""
        if not text.strip():
            return
        self.last_line = text
        if self._raised is not None and not text.startswith("  "):
            self._raised = None
        if _BANNER.match(text):
            self._banner(text)
        elif ": " in text or text.lstrip().startswith("File "):
            self._message(text)

    def _message(self, text: str) -> None:
        if match := _GCC.match(text):
            self._gcc(match)
        elif match := _LINK_IN_FILE.match(text):
            self._add("error", match["message"], file=match["file"], line=int(match["line"] or 0))
        elif match := _SCRIPT.match(text):
            self._in_script(match["file"], int(match["line"]))
        elif match := _RAISED.match(text):
            self._raise(match["message"].rstrip(": "))
        elif (match := _LINK.match(text)) and not _LINK_NOISE.search(match["message"]):
            message = match["message"]
            severity: Literal["error", "warning"] = "error"
            if message.startswith("warning: "):
                severity, message = "warning", message.removeprefix("warning: ")
            self._add(severity, message)

    def _in_script(self, file: str, line: int) -> None:
        """A place in a traceback: SCons says what was raised before it, Python itself after it."""
        if self._raised is None:
            self._script = (file, line)
            return
        message, at = self._raised
        del self.found[at:]
        self._add("error", message, file=file, line=line)

    def _raise(self, message: str) -> None:
        if self._script is None:
            self._raised = (message, len(self.found))
            return
        (file, line), self._script = self._script, None
        self._add("error", message, file=file, line=line)

    def _gcc(self, match: re.Match[str]) -> None:
        severity = match["severity"].removeprefix("fatal ")
        message = match["message"]
        missing = _MISSING_HEADER.match(message) if severity == "error" else None
        self._add(
            severity,
            message,
            file=match["file"],
            line=int(match["line"]),
            column=int(match["column"] or 0),
            flag=match["flag"] or "",
            hint=_missing_header(missing["header"]) if missing else "",
        )

    def _banner(self, text: str) -> None:
        # PlatformIO prints it in the middle of the error; if GCC's own line was lost, it stands in.
        match = _BANNER.match(text)
        assert match is not None
        message = f"{match['header']}: No such file or directory"
        if not any(one.message == message for one in self.found):
            self._add("error", message, hint=_missing_header(match["header"]))

    def _add(
        self,
        severity: str,
        message: str,
        *,
        file: str = "",
        line: int = 0,
        column: int = 0,
        flag: str = "",
        hint: str = "",
    ) -> None:
        file = file.removeprefix(_PROJECT).removeprefix("./")
        key = (file, line, column, message)
        if key in self._seen or len(self.found) >= MAX_DIAGNOSTICS:
            return
        self._seen.add(key)
        hint = hint or next((text for found, text in _HINTS if found.search(message)), "")
        self.found.append(
            Diagnostic.model_validate(
                {
                    "severity": severity,
                    "file": file[:1024],
                    "line": line,
                    "column": column,
                    "message": message[:2000],
                    "flag": flag[:120],
                    "hint": hint,
                }
            )
        )


def _missing_header(header: str) -> str:
    return (
        f"Nothing that this project or its libraries bring has {header[:200]}: check the name, or "
        "add the library that has it to lib_deps."
    )
