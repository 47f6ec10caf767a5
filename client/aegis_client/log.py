"""
The client's own log: events on stderr, and only if AEGIS_LOG asks for them.

AEGIS_LOG is `info`, or `info,links=debug`: a level, then levels of parts (`links`, `client`, or
any logger's name).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

import structlog

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL,
}


def configure_log(setting: str | None = None) -> None:
    """Send the events of this process to stderr as AEGIS_LOG says; a word it can't read is off."""
    setting = os.environ.get("AEGIS_LOG", "") if setting is None else setting
    default, parts = _levels(setting)
    # aiortc, aioice and asyncio log through the standard library; unasked they say nothing.
    logging.basicConfig(stream=sys.stderr, level=max(default, logging.WARNING), force=True)
    for part, level in parts.items():
        logging.getLogger(part).setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        logger_factory=lambda *names: _EventLogger(names[0] if names else "", default, parts),
        wrapper_class=structlog.make_filtering_bound_logger(
            min([default, *parts.values()], default=default)
        ),
        cache_logger_on_first_use=False,
    )


class _EventLogger:
    """Prints what the levels let through. name: the logger's, as `get_logger` was given it."""

    def __init__(self, name: str, default: int, parts: dict[str, int]) -> None:
        self.name = name or "aegis"
        matching = [part for part in parts if _covers(part, self.name)]
        self._level = parts[max(matching, key=len)] if matching else default

    def _print(self, level: int, text: str) -> None:
        if level >= self._level:
            print(text, file=sys.stderr)  # noqa: T201

    def __getattr__(self, name: str) -> Any:
        level = {"warn": logging.WARNING, "exception": logging.ERROR}.get(
            name, LEVELS.get(name, logging.CRITICAL)
        )
        return lambda text: self._print(level, text)


def _covers(part: str, name: str) -> bool:
    return any(name == full or name.startswith(f"{full}.") for full in (part, f"aegis_{part}"))


def _levels(setting: str) -> tuple[int, dict[str, int]]:
    default, parts = LEVELS["off"], {}
    for word in filter(None, (word.strip() for word in setting.split(","))):
        part, sign, level = word.rpartition("=")
        if sign:
            parts[part] = LEVELS.get(level.lower(), LEVELS["off"])
        else:
            default = LEVELS.get(level.lower(), LEVELS["off"])
    return default, parts
