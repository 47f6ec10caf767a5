"""Which events of `GET /events` a caller gets: of those that it may see, those that it wants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.fleet_events import FLEET_TYPES
from aiohttp import web

from aegis_control.http.route import Query
from aegis_control.identity import Identity

MAX_WORDS: Final = 64

_WORD: Final = re.compile(r"^[A-Za-z0-9_.:@-]{1,80}$")

TICKET: Final = Query("ticket", "In place of a key, from `POST /events/ticket`.")
QUERIES: Final = (
    Query("types", "Only these types of events, comma between."),
    Query("targets", "Only what is about these targets; `X-Capabilities` means the same."),
    Query("project_key", "Only jobs of these projects, `global` for those without; `X-Codebases`."),
    TICKET,
)


class Concerning(Protocol):
    """An event, as kept or as told: `announcing.Announcement` says what the fields mean."""

    @property
    def type(self) -> str: ...
    @property
    def identity(self) -> str | None: ...
    @property
    def targets(self) -> frozenset[str]: ...
    @property
    def project_key(self) -> str | None: ...
    @property
    def board_id(self) -> str | None: ...


@dataclass(frozen=True)
class Filter:
    """None: all of them."""

    identity: Identity
    types: frozenset[str] | None = None
    targets: frozenset[str] | None = None
    projects: frozenset[str] | None = None

    def passes(self, event: Concerning) -> bool:
        return self._may_see(event) and self._wants(event)

    def _may_see(self, event: Concerning) -> bool:
        if self.identity.has(Role.OPERATOR):
            return True
        boards = self.identity.limits.get("boards")
        if boards is not None and event.board_id is not None and event.board_id not in boards:
            return False
        return event.identity is None or event.identity == self.identity.id

    def _wants(self, event: Concerning) -> bool:
        if self.types is not None and event.type not in self.types:
            return False
        if self.targets is not None and event.targets and not event.targets & self.targets:
            return False
        return (
            self.projects is None or event.project_key is None or event.project_key in self.projects
        )


def filter_of(request: web.Request, identity: Identity) -> Filter:
    """What the query and the headers say. BadRequest names the one that is wrong."""
    types = _words(request, "types", None)
    unknown = sorted((types or frozenset()) - set(FLEET_TYPES))
    if unknown:
        raise BadRequest(
            f"types: there is no {unknown[0]}; there are {', '.join(FLEET_TYPES)}", field="types"
        )
    return Filter(
        identity,
        types=types,
        targets=_words(request, "targets", "X-Capabilities"),
        projects=_words(request, "project_key", "X-Codebases"),
    )


def _words(request: web.Request, name: str, header: str | None) -> frozenset[str] | None:
    texts = [(name, text) for text in request.query.getall(name, [])]
    if header is not None:
        texts += [(header, text) for text in request.headers.getall(header, [])]
    if not texts:
        return None
    found = frozenset(_checked(texts))
    if len(found) > MAX_WORDS:
        raise BadRequest(f"{name}: at most {MAX_WORDS} words", field=name)
    return found


def _checked(texts: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, text in texts:
        for word in filter(None, (part.strip() for part in text.split(","))):
            if not _WORD.match(word):
                raise BadRequest(f"{name}: {word[:40]!r} is none", field=name)
            yield word
