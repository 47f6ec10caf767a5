"""On whose behalf something is done: the caller of a request, an agent, or control by itself."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final

CONTROL: Final = "control"


@dataclass(frozen=True, slots=True)
class Actor:
    """who: an identity's or an agent's id, `local` or `control`. source: the address."""

    who: str = CONTROL
    source: str | None = None


_ACTOR: Final[ContextVar[Actor]] = ContextVar("aegis_actor")
_NOBODY: Final = Actor()


def actor() -> Actor:
    """Who acts here; control itself where nobody asked."""
    return _ACTOR.get(_NOBODY)


class acting:
    """While the block lasts, `who` acts, from `source`; what is not given stays as it was."""

    # no generator: one of them lasts as long as each agent's link

    __slots__ = ("_actor", "_token")

    def __init__(self, who: str | None = None, source: str | None = None) -> None:
        now = actor()
        self._actor = replace(now, who=who or now.who, source=source or now.source)

    def __enter__(self) -> None:
        self._token = _ACTOR.set(self._actor)

    def __exit__(self, *_: object) -> None:
        _ACTOR.reset(self._token)
