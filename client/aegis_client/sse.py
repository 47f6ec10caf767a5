"""Server-sent events as bytes arrive (WHATWG HTML section 9.2): a parser without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aegis_protocol.failures.http import ControlAnswerInvalid

MAX_EVENT_BYTES: Final = 1_048_576


@dataclass(frozen=True)
class ServerEvent:
    """id: of this event, or of the last one that had any."""

    id: str
    type: str
    data: str


class SseParser:
    """Feed it bytes in any pieces; it gives the events that are complete."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._rest = b""
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Raises ControlAnswerInvalid when an event is larger than MAX_EVENT_BYTES."""
        buffer = self._rest + data
        events: list[ServerEvent] = []
        # A CR at the very end may be half of a CRLF: it waits for what follows.
        held = buffer[-1:] == b"\r"
        lines = (buffer[:-1] if held else buffer).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *complete, rest = lines.split(b"\n")
        self._rest = rest + (b"\r" if held else b"")
        for line in complete:
            event = self._line(line)
            if event is not None:
                events.append(event)
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise ControlAnswerInvalid("control sent an event that is too large")
        return events

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
                self._size += len(line)
            case "id" if "\0" not in value:
                self.last_id = value
            case _:  # a comment (empty name), retry, or a field of another version
                pass
        return None

    def _dispatch(self) -> ServerEvent | None:
        kind, data = self._type, self._data
        self._type, self._data, self._size = "", [], 0
        if not data:
            return None
        return ServerEvent(self.last_id, kind or "message", "\n".join(data))
