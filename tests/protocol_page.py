"""
docs/protocol.md as data: what each heading describes, and each example read by its model.

Reading an example fails when it is no JSON, does not fit its model, or has a field that the model
does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from aegis_control.http.route import Route
from aegis_control.http.routes import ROUTES
from aegis_control.http.statuses import status_of
from aegis_protocol.control_link import TO_AGENT, TO_CONTROL
from aegis_protocol.errors import ErrorBody, ErrorReply
from aegis_protocol.events import SIGNAL_EVENT
from aegis_protocol.fleet_events import FLEET_EVENT, FLEET_TYPES
from aegis_protocol.grant import GrantClaims
from aegis_protocol.manifest import BuildInfo, Diagnostic, Manifest
from aegis_protocol.rpc import METHODS, NOTIFICATIONS
from aegis_protocol.source import SourcePlan
from doc_pages import Section, sections
from pydantic import BaseModel, TypeAdapter

PAGE: Final = "protocol.md"
TO_AGENT_HEADING: Final = "Control to agent"
TO_CONTROL_HEADING: Final = "Agent to control"
DOCUMENTS: Final[Mapping[str, TypeAdapter[Any] | None]] = {
    "source plan": TypeAdapter(SourcePlan),
    "manifest.json": TypeAdapter(Manifest),
    "build.json": TypeAdapter(BuildInfo),
    "diagnostics.json": TypeAdapter(list[Diagnostic]),
    "flash_bundle.tar.gz": None,
}
_RESPONSE: Final = re.compile(r"^HTTP/1\.1 (\d{3}) (.+)$")
_REQUEST: Final = re.compile(r"^([A-Z]+) (\S+) HTTP/1\.1$")


@dataclass(frozen=True)
class Told:
    """An example that its model has read. where: the heading that it stands under."""

    where: str
    raw: Any
    value: Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: str


@dataclass(frozen=True)
class Response:
    status: HTTPStatus
    body: str


@cache
def page() -> list[Section]:
    return sections(PAGE)


def section(title: str) -> Section:
    (found,) = [one for one in page() if one.title == title]
    return found


def described(kind: str, *, under: str | None = None) -> dict[str, Section]:
    """The sections whose heading is `kind` and a name in backquotes, by that name."""
    found: dict[str, Section] = {}
    for one in page():
        match = re.fullmatch(rf"{kind} ?`(.+)`", one.title)
        if match and (under is None or under in one.under):
            assert match[1] not in found, f"{one.title} is described twice"
            found[match[1]] = one
    return found


def endpoints() -> dict[tuple[str, str], Section]:
    """By method and path pattern."""
    found = described("", under="Control's HTTP API")
    return {(method, path): one for (method, _, path), one in _split(found)}


def read(where: str, model: TypeAdapter[Any], text: str) -> Told:
    raw = json.loads(text)
    value = model.validate_json(text)
    kept = model.dump_python(value, mode="json", exclude_unset=True)
    assert kept == raw, f"{where}: the example has fields that its model does not know"
    return Told(where, raw, value)


def requests(where: Section) -> list[Request]:
    return [one for one in _messages(where) if isinstance(one, Request)]


def responses(where: Section) -> list[Response]:
    return [one for one in _messages(where) if isinstance(one, Response)]


def matches(route: Route, path: str) -> bool:
    pattern = "".join(
        "[^/]+" if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{\w+\})", route.path)
    )
    return re.fullmatch(pattern, path.partition("?")[0]) is not None


def rpc_messages(where: Section) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in where.written_in("json")]
    assert all(message.pop("jsonrpc") == "2.0" for message in found), where.title
    return found


def told() -> list[Told]:
    """Every example of the page that has a model."""
    return [*_errors(), *_http(), *_events(), *_frames(), *_rpc(), *_documents()]


def models(value: Any) -> Iterator[BaseModel]:
    """`value` and every model inside of it."""
    match value:
        case BaseModel():
            yield value
            for name in type(value).model_fields:
                yield from models(getattr(value, name))
        case dict():
            for inner in value.values():
                yield from models(inner)
        case list() | tuple():
            for inner in value:
                yield from models(inner)


def _errors() -> Iterator[Told]:
    for title, model in (
        ("Three wires", TypeAdapter(ErrorBody)),
        ("The grant", TypeAdapter(GrantClaims)),
    ):
        *_, text = section(title).written_in("json")
        yield read(title, model, text)
    for response in responses(section("Control's HTTP API")):
        yield _refusal("Control's HTTP API", response)
    (text,) = section("error response").written_in("json")
    yield read(
        "error response", TypeAdapter(ErrorBody), json.dumps(json.loads(text)["error"]["data"])
    )


def _http() -> Iterator[Told]:
    for route in ROUTES:
        where = endpoints()[route.method, route.path]
        for request in requests(where):
            if route.takes is not None:
                yield read(where.title, TypeAdapter(route.takes), request.body)
        for response in responses(where):
            model = route.gives.get(response.status)
            if model is not None:
                yield read(where.title, TypeAdapter(model), response.body)
            elif response.status not in route.gives:
                yield _refusal(where.title, response)
            elif response.body.startswith("id:"):
                for line in re.findall(r"^data: (.+)$", response.body, re.MULTILINE):
                    of_stream = FLEET_EVENT if route.path == "/events" else SIGNAL_EVENT
                    yield read(where.title, of_stream, line)


def _refusal(where: str, response: Response) -> Told:
    found = read(where, TypeAdapter(ErrorReply), response.body)
    assert status_of(found.value.error.code) == response.status, where
    return found


def _events() -> Iterator[Told]:
    for name, where in described("event").items():
        yield _typed(name, where, FLEET_EVENT if name in FLEET_TYPES else SIGNAL_EVENT)


def _frames() -> Iterator[Told]:
    for under, model in ((TO_AGENT_HEADING, TO_AGENT), (TO_CONTROL_HEADING, TO_CONTROL)):
        for name, where in described("frame", under=under).items():
            yield _typed(name, where, model)


def _typed(name: str, where: Section, model: TypeAdapter[Any]) -> Told:
    (text,) = where.written_in("json")
    found = read(where.title, model, text)
    assert found.value.type == name, where.title
    return found


def _rpc() -> Iterator[Told]:
    for name, where in described("method").items():
        asked, answered = rpc_messages(where)
        params, result = METHODS[name]
        yield read(where.title, TypeAdapter(params), json.dumps(asked["params"]))
        yield read(where.title, TypeAdapter(result), json.dumps(answered["result"]))
    for name, where in described("notification").items():
        (said,) = rpc_messages(where)
        yield read(where.title, TypeAdapter(NOTIFICATIONS[name]), json.dumps(said["params"]))


def _documents() -> Iterator[Told]:
    for name, where in described("document").items():
        model = DOCUMENTS[name]
        if model is not None:
            (text,) = where.written_in("json")
            yield read(where.title, model, text)


def _messages(where: Section) -> Iterator[Request | Response]:
    for text in where.written_in("http"):
        head, _, body = text.partition("\n\n")
        first = head.splitlines()[0]
        if match := _RESPONSE.match(first):
            status = HTTPStatus(int(match[1]))
            assert match[2] == status.phrase, first
            yield Response(status, body)
        elif match := _REQUEST.match(first):
            yield Request(match[1], match[2], body)
        else:
            raise AssertionError(f"{where.title}: {first} begins no HTTP message")


def _split(found: Mapping[str, Section]) -> Iterator[tuple[tuple[str, str, str], Section]]:
    for name, one in found.items():
        yield name.partition(" "), one
