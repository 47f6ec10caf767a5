"""The agent's log: events with facts, one JSON object a line, or readable on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

from aegis_agent.config import ConfigInvalid

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(setting: str) -> None:
    """
    Set the log up from AEGIS_LOG: a level, then `part=level` pairs: `info,links=debug`.

    Raises ConfigInvalid for a level that is none.
    """
    levels: dict[str, int] = {}
    for item in setting.split(","):
        part, sign, level = item.strip().rpartition("=")
        if level not in _LEVELS or (sign and not part):
            raise ConfigInvalid(f"AEGIS_LOG: {item!r} is no level; levels are {', '.join(_LEVELS)}")
        levels[part] = _LEVELS[level]
    lowest = min(levels.values())

    def by_part(_: Any, method: str, event: structlog.typing.EventDict) -> Any:
        part = str(event.pop("part", ""))
        if _LEVELS.get(method, logging.ERROR) < levels.get(part, levels.get("", logging.INFO)):
            raise structlog.DropEvent
        return event

    readable = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            by_part,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if readable else [structlog.processors.dict_tracebacks]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
