"""A row of the route table, what its endpoint is called with, and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest, KeyMissing
from aiohttp import web
from pydantic import BaseModel

from aegis_control.control import Control
from aegis_control.identity import Identity

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Reply:
    """A status and a body; no body for 204."""

    body: BaseModel | None = None
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request: who asks, what for, and the validated body."""

    request: web.Request
    caller: Identity | None
    body: BaseModel | None

    @property
    def identity(self) -> Identity:
        """Whoever asks; a public route has nobody."""
        if self.caller is None:
            raise KeyMissing("this needs an API key")
        return self.caller

    def path(self, name: str) -> str:
        """A part of the path."""
        return self.request.match_info[name]

    def taking(self, model: type[Model]) -> Model:
        """The body, as the route table says that it is."""
        if not isinstance(self.body, model):
            raise BadRequest("a JSON body is needed")
        return self.body


@dataclass(frozen=True)
class Query:
    """A parameter of the query string, with its JSON schema for the OpenAPI document."""

    name: str
    words: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


Endpoint: TypeAlias = Callable[[Control, Call], Awaitable[Reply | web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """
    role     the lowest that may call it; None: anybody, with no key
    takes    the model of the body, if it has one
    queries  what the query string may have
    gives    the model of the body by status; None: no body, or no JSON
    local    also on the socket in the state directory
    proves   takes another secret than a key: a grant, or an enrolment token
    streams  lives as long as both sides want; no deadline
    lasting  its reply says that what was done would outlive a power failure
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    role: Role | None
    gives: Mapping[HTTPStatus, type[BaseModel] | None]
    takes: type[BaseModel] | None = None
    queries: tuple[Query, ...] = ()
    local: bool = False
    proves: bool = False
    streams: bool = False
    lasting: bool = False
