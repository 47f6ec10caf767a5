"""A key or token as an argument names it: by its id or the id's beginning, never by its secret."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from aegis_protocol.failures.http import BadRequest

_ID: Final = re.compile(r"^[a-z2-7]{1,32}$")
_LEAST: Final = 4


class Named(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=Named)


def beginning(text: str, marker: str) -> str:
    """
    Return the beginning of an id, with or without `marker` (`aegis_sk_`) before it.

    Raises BadRequest when there is more: other users of this machine can read arguments.
    """
    begins = text.strip().removeprefix(marker)
    if not _ID.match(begins):
        raise BadRequest(
            "name it by its id, or by its beginning, never by all of its text",
            remedy=f"The id is what stands between `{marker}` and the next `_`. If all of it was "
            "typed, revoke it: other users could read it. `verify-token` takes one on its input.",
            field="id",
        )
    return begins


def the_one(begins: str, rows: Sequence[Row]) -> Row | None:
    """The row whose id is `begins`, or alone begins so. BadRequest when there are several."""
    exact = [row for row in rows if row.id == begins]
    found = exact or [row for row in rows if row.id.startswith(begins)]
    if not found:
        return None
    if len(found) > 1 or (not exact and len(begins) < _LEAST):
        raise BadRequest(
            f"{begins} is the beginning of {', '.join(row.id for row in found[:5])}",
            remedy=f"Name one of them, by {_LEAST} letters or more.",
            field="id",
        )
    return found[0]
