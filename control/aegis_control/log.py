"""
Logs as events: JSON lines, or coloured text on a terminal.

`AEGIS_LOG` is a list such as `info,links=debug,json`: a level for all, levels for one part
(`http`, `link`, `placement`, `store`, …), and `json` or `console` where the choice by terminal is
not wanted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FORMATS: Final = ("json", "console")
_SECRET_WORDS: Final = ("secret", "token", "password", "authorization", "api_key", "credential")


@dataclass(frozen=True)
class Spec:
    level: int = logging.INFO
    parts: Mapping[str, int] = field(default_factory=dict)
    format: str | None = None


def check_spec(text: str) -> Spec:
    """Return what `text` says; ValueError names the word that is wrong."""
    level, parts, chosen = logging.INFO, {}, None
    for word in (w.strip().lower() for w in text.split(",")):
        name, sign, value = word.partition("=")
        if not word:
            continue
        if sign and name and value in LEVELS:
            parts[name] = LEVELS[value]
        elif not sign and name in LEVELS:
            level = LEVELS[name]
        elif not sign and name in _FORMATS:
            chosen = name
        else:
            raise ValueError(f"{word!r} is no level such as info or links=debug")
    return Spec(level, parts, chosen)


def configure(text: str) -> None:
    """Send every event of this process to stderr as `text` (AEGIS_LOG) says."""
    spec = check_spec(text)
    console = spec.format == "console" or (spec.format is None and sys.stderr.isatty())
    lowest = min([spec.level, *spec.parts.values()])

    def by_part(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
        needed = spec.parts.get(str(event.get("part", "")), spec.level)
        if LEVELS.get("error" if method == "exception" else method, logging.INFO) < needed:
            raise structlog.DropEvent
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        by_part,
        redact,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: Processor
    if console:
        # the pretty traceback shows local variables, and with them secrets
        last = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        shared.append(structlog.processors.format_exc_info)
        last = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    _bridge_libraries()


def get_logger(part: str) -> FilteringBoundLogger:
    """The logger of one part of control."""
    logger: FilteringBoundLogger = structlog.get_logger(part=part)
    return logger


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The last line of defence: a fact whose name speaks of a secret loses its value."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event


class _Bridge(logging.Handler):
    """Libraries' warnings as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log = get_logger("library")
        facts: dict[str, Any] = {"logger": record.name, "detail": record.getMessage()}
        if record.exc_info:
            facts["exc_info"] = record.exc_info
        (log.error if record.levelno >= logging.ERROR else log.warning)("library.spoke", **facts)


def _bridge_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [_Bridge(level=logging.WARNING)]
    root.setLevel(logging.WARNING)
