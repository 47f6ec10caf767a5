"""Times as a command line has them, and as a table shows them."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Final

from aegis_protocol.failures.http import BadRequest

_SPAN: Final = re.compile(r"^(\d{1,6})(s|m|h|d|w)$")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def seconds_until(text: str, *, option: str) -> int:
    """
    Return the seconds from now that `text` means: `90m`, `12h`, `30d`, or a date such as
    2027-01-31 or 2027-01-31T12:00:00+01:00 (without a zone: this machine's).

    Raises BadRequest, which names `option`.
    """
    span = _SPAN.match(text)
    if span is not None and int(span[1]):
        return int(span[1]) * _UNIT_S[span[2]]
    try:
        at = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise BadRequest(
            f"{option} {text[:40]}: written as 12h, 30d or 2027-01-31",
            remedy=f"Correct {option}.",
            field=option,
        ) from exc
    left = int(at - time.time())
    if left < 1:
        raise BadRequest(
            f"{option} {text[:40]}: that is over", remedy=f"Correct {option}.", field=option
        )
    return left


def seconds_since(text: str, *, option: str) -> float:
    """
    Return the unix time that `text` means: `90m` or `7d` ago, or a date as `seconds_until` reads.

    Raises BadRequest, which names `option`.
    """
    span = _SPAN.match(text)
    if span is not None:
        return time.time() - int(span[1]) * _UNIT_S[span[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise BadRequest(
            f"{option} {text[:40]}: written as 90m, 7d or 2026-12-31",
            remedy=f"Correct {option}.",
            field=option,
        ) from exc


def minute(at: float | None, *, none: str = "") -> str:
    """A unix time in this machine's zone, to the minute; `none` where there is none."""
    return none if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def second(at: float) -> str:
    """The same to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def ago(at: float | None) -> str:
    if at is None:
        return "never"
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
