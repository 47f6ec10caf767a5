"""On whose behalf something is done: the caller of a request, an agent, or control by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final

CONTROL: Final = "control"


@dataclass(frozen=True)
class Actor:
    """who: an identity's or an agent's id, `local` or `control`. source: the address."""

    who: str = CONTROL
    source: str | None = None


_ACTOR: Final[ContextVar[Actor]] = ContextVar("aegis_actor")
_NOBODY: Final = Actor()


def actor() -> Actor:
    """Who acts here; control itself where nobody asked."""
    return _ACTOR.get(_NOBODY)


@contextmanager
def acting(who: str | None = None, source: str | None = None) -> Iterator[None]:
    """While the block lasts, `who` acts, from `source`; what is not given stays as it was."""
    now = actor()
    token = _ACTOR.set(replace(now, who=who or now.who, source=source or now.source))
    try:
        yield
    finally:
        _ACTOR.reset(token)
