"""
The agent's log: events with facts, one JSON object a line, or readable on a terminal.

AEGIS_LOG is a level, then `part=level` pairs: `info,links=debug`. A part is a package or a module
of it: `agent`, `links`, `links.rpc`. No local variable of any frame is ever logged, and a fact
whose name speaks of a secret loses its value.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, Final

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SECRET_WORDS: Final = ("secret", "token", "password", "authorization", "api_key", "credential")


def levels(setting: str) -> dict[str, int]:
    """Return the levels by part, "" for all others. ValueError names what is no level."""
    found: dict[str, int] = {"": logging.INFO}
    for item in setting.split(","):
        part, sign, level = item.strip().rpartition("=")
        if level not in _LEVELS or (sign and not part):
            raise ValueError(f"{item!r} is no level; levels are {', '.join(_LEVELS)}")
        found[part] = _LEVELS[level]
    return found


def configure(setting: str) -> None:
    """Send every event of this process to stderr, as `setting` (AEGIS_LOG) says."""
    by_part = levels(setting)
    readable = sys.stderr.isatty()
    exceptions: tuple[Processor, ...] = ()
    renderer: Processor
    if readable:
        # Rich's tracebacks show local variables, and with them secrets.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    else:
        transformer = ExceptionDictTransformer(show_locals=False)
        exceptions = (structlog.processors.ExceptionRenderer(transformer),)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _Filter(by_part),
            structlog.processors.add_log_level,
            redact,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(min(by_part.values())),
        logger_factory=_NamedLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Bridge(level=logging.WARNING)]
    root.setLevel(logging.WARNING)


def redact(_: object, __: str, event: EventDict) -> EventDict:
    """The last line of defence: a fact whose name speaks of a secret loses its value."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event


class _NamedLogger(structlog.PrintLogger):
    """Prints to stderr, and knows which module's logger it is: `links.rpc`."""

    def __init__(self, name: str = "aegis_agent") -> None:
        super().__init__(sys.stderr)
        self.part = name.removeprefix("aegis_")


class _Filter:
    """Drops what is below its part's level."""

    def __init__(self, by_part: Mapping[str, int]) -> None:
        self._by_part = by_part

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        if _LEVELS.get(method, logging.ERROR) < self._needed(getattr(logger, "part", "")):
            raise structlog.DropEvent
        return event

    def _needed(self, part: str) -> int:
        while part and part not in self._by_part:
            part = part.rpartition(".")[0]
        return self._by_part[part]


class _Bridge(logging.Handler):
    """Libraries' warnings as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = {"logger": record.name, "detail": record.getMessage()}
        if record.exc_info:
            facts["exc_info"] = record.exc_info
        log = structlog.get_logger("library")
        (log.error if record.levelno >= logging.ERROR else log.warning)("library.spoke", **facts)
