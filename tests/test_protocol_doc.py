"""docs/protocol.md says what the code does: nothing missing, nothing extra, all of it parses."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
from aegis_control.http.route import Route
from aegis_control.http.routes import ROUTES
from aegis_links import rpc as links_rpc
from aegis_protocol import actions, events, failures, signing  # noqa: F401 - failures registers
from aegis_protocol.control_link import Revocation, ToAgent, ToControl
from aegis_protocol.errors import ErrorBody, known_codes
from aegis_protocol.fleet_events import FleetEvent
from aegis_protocol.frames import (
    StreamFrame,
    StreamKind,
    TransferFrame,
    TransferKind,
    decode_stream_frame,
    decode_transfer_frame,
)
from aegis_protocol.grant import Execution, WebRtcLimits
from aegis_protocol.rpc import METHODS, NOTIFICATIONS
from aegis_protocol.states import JOB_MOVES, TASK_MOVES, AgentState, diagram
from doc_pages import Section, hex_bytes
from house import ROOT
from protocol_page import (
    DOCUMENTS,
    TO_AGENT_HEADING,
    TO_CONTROL_HEADING,
    described,
    endpoints,
    matches,
    models,
    page,
    requests,
    responses,
    rpc_messages,
    section,
    told,
)
from pydantic import BaseModel

ROUTE_IDS = [f"{route.method} {route.path}" for route in ROUTES]
STREAMS = described("binary stream")
TRANSFERS = described("binary transfer")
LANGUAGES = {"json", "http", "hex", "jwt", "sdp", "mermaid"}


def types_of(union: Any) -> set[str]:
    """The `type` of each model in a discriminated union."""
    found = {model.model_fields["type"].default for model in union.__origin__.__args__}
    return {str(name) for name in found}


def test_every_endpoint_is_described_and_no_other() -> None:
    assert endpoints().keys() == {(route.method, route.path) for route in ROUTES}


def test_every_event_is_described_and_no_other() -> None:
    assert described("event").keys() == types_of(events.SignalEvent) | types_of(FleetEvent)


def test_every_link_frame_is_described_each_way_and_no_other() -> None:
    assert described("frame", under=TO_AGENT_HEADING).keys() == types_of(ToAgent)
    assert described("frame", under=TO_CONTROL_HEADING).keys() == types_of(ToControl)


def test_every_method_and_notification_is_described_and_no_other() -> None:
    assert described("method").keys() == METHODS.keys()
    assert described("notification").keys() == NOTIFICATIONS.keys()


def test_every_binary_frame_is_described_and_no_other() -> None:
    assert STREAMS.keys() == {kind.name.lower() for kind in StreamKind}
    assert TRANSFERS.keys() == {kind.name.lower() for kind in TransferKind}


def test_every_signed_statement_is_described_and_no_other() -> None:
    kinds = {name for name in vars(signing) if name.endswith("_statement")}
    assert {f"aegis-{name.removesuffix('_statement')}-v1" for name in kinds} == described(
        "statement"
    ).keys()


def test_every_document_is_described_and_no_other() -> None:
    assert described("document").keys() == DOCUMENTS.keys()


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_an_endpoint_shows_its_request_its_answers_and_who_may_call_it(route: Route) -> None:
    where = endpoints()[route.method, route.path]
    (asked,) = requests(where)
    assert asked.method == route.method
    assert matches(route, asked.path)
    assert bool(asked.body) == (route.takes is not None)
    assert {response.status for response in responses(where)} >= set(route.gives)
    key = "none" if route.role is None else f"role `{route.role}` or higher"
    assert f"\nKey: {key}" in where.prose


def test_every_example_is_read_by_its_model_and_has_no_unknown_field() -> None:
    assert len(told()) > 90


def test_no_example_stands_where_nothing_reads_it() -> None:
    read = re.compile(r"(event|frame|method|notification|document) `|Three wires|The grant|error ")
    for one in page():
        assert {example.language for example in one.examples} <= LANGUAGES, one.title
        assert read.match(one.title) or not one.written_in("json"), one.title
        bytes_are_read = one.title.startswith(("binary ", "statement "))
        assert bytes_are_read or not one.written_in("hex"), one.title


def test_every_field_of_every_model_stands_in_an_example() -> None:
    seen: dict[type[BaseModel], set[str]] = {}
    for example in told():
        for model in models(example.value):
            seen.setdefault(type(model), set()).update(model.model_fields_set)
    unseen = {
        f"{model.__name__}.{name}"
        for model, names in seen.items()
        for name in model.model_fields.keys() - names
    }
    assert not unseen


def test_the_examples_follow_one_job() -> None:
    jobs = {
        getattr(model, name)
        for example in told()
        for model in models(example.value)
        for name in ("job_id", "jti")
        if getattr(model, name, None) is not None
    }
    assert len(jobs) == 2, "one job with one connection"


def test_errors_in_the_examples_say_what_their_class_says() -> None:
    known = known_codes()
    bodies = [m for example in told() for m in models(example.value) if isinstance(m, ErrorBody)]
    assert len(bodies) > 8
    for body in bodies:
        assert (body.remedy, body.retryable) == (
            known[body.code].remedy,
            known[body.code].retryable,
        )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_shows_a_request_and_its_answer(name: str) -> None:
    asked, answered = rpc_messages(described("method")[name])
    assert asked.keys() == {"id", "method", "params"}
    assert asked["method"] == name
    assert answered.keys() == {"id", "result"}
    assert answered["id"] == asked["id"]


@pytest.mark.parametrize("name", NOTIFICATIONS)
def test_a_notification_shows_what_is_said_and_has_no_id(name: str) -> None:
    (said,) = rpc_messages(described("notification")[name])
    assert said.keys() == {"method", "params"}
    assert said["method"] == name


def test_the_table_of_error_numbers_is_the_one_in_force() -> None:
    numbers = {cls.code: number for cls, number in links_rpc._NUMBERS.items()}
    rows = {code.strip("`"): int(number) for number, code in section("Requests on `espctl`").table()
            if code.startswith("`") and number.startswith("-")}  # fmt: skip
    assert rows == numbers


@pytest.mark.parametrize("where", STREAMS.values(), ids=STREAMS)
def test_a_stream_frame_decodes_to_its_kind_and_back_to_its_bytes(where: Section) -> None:
    for text in where.written_in("hex"):
        frame = decode_stream_frame(hex_bytes(text))
        assert frame.encode() == hex_bytes(text)
        check_frame(where, text, frame)


@pytest.mark.parametrize("where", TRANSFERS.values(), ids=TRANSFERS)
def test_a_transfer_frame_decodes_to_its_kind_and_back_to_its_bytes(where: Section) -> None:
    for text in where.written_in("hex"):
        frame = decode_transfer_frame(hex_bytes(text))
        assert frame.encode() == hex_bytes(text)
        check_frame(where, text, frame)


def check_frame(where: Section, text: str, frame: StreamFrame | TransferFrame) -> None:
    """The heading is the frame's kind, and the meanings beside the bytes name its numbers."""
    assert where.title.endswith(f"`{frame.kind.name.lower()}`")
    meanings = [line.partition("# ")[2] for line in text.splitlines()]
    assert f"kind {int(frame.kind)}" in meanings
    numbers = {name: getattr(frame, name) for name in frame.__slots__}
    for name, value in numbers.items():
        if isinstance(value, int):
            assert f"{name} {value}" in meanings


def test_the_diagrams_are_those_of_the_tables() -> None:
    drawn = section("States").written_in("mermaid")
    assert drawn == [diagram(JOB_MOVES), diagram(TASK_MOVES)]


def test_roles_actions_and_methods_are_those_of_the_tables() -> None:
    rows = [tuple(re.findall(r"`([^`]+)`", cell) for cell in row)
            for row in section("Roles, actions, methods").table()]  # fmt: skip
    roles = {names[0]: set(last) for names, last in rows if names and names[0] in actions.RANK}
    assert roles == {role: set(rights) for role, rights in actions.ROLE_ACTIONS.items()}
    granted = {
        method: names[0] if names else None
        for names, last in rows
        if not names or names[0] in set(actions.Action)
        for method in last
        if method in actions.METHOD_ACTION
    }
    assert granted == dict(actions.METHOD_ACTION)


def test_the_limits_are_those_in_force() -> None:
    rows = section("Limits").table()
    assert len(rows) > 25
    for what, value, where in rows:
        module, _, name = where.strip("`").rpartition(".")
        number = float(value.split()[0].replace(",", ""))
        assert number == getattr(import_module(module), name), what


def test_the_reasons_to_wait_are_those_that_the_scheduler_gives() -> None:
    files = (ROOT / "control/aegis_control/scheduler").glob("*.py")
    source = "".join(file.read_text() for file in files)
    given = set(re.findall(r'(?:Objection\(\s*|Reason\(code=)"([a-z_]+\.[a-z_]+)"', source))
    given |= {f"agent.{state}" for state in AgentState if state is not AgentState.ONLINE}
    cells = [row[0] for row in section("Control's HTTP API").table()]
    assert given == set(re.findall(r"`([a-z_.]+)`", " ".join(cells)))


def test_every_code_that_the_page_names_exists() -> None:
    known = {*known_codes(), *METHODS, *NOTIFICATIONS, *(str(a) for a in actions.Action)}
    known |= types_of(ToAgent) | types_of(ToControl) | types_of(Revocation)
    known |= DOCUMENTS.keys() | {"manifest.sig"}
    reasons = {row[0] for row in section("Control's HTTP API").table()}
    known |= set(re.findall(r"`([a-z_.]+)`", " ".join(reasons)))
    known |= {f"webrtc.{name}" for name in WebRtcLimits.model_fields} | {"toolchain.version"}
    known |= {f"execution.{name}" for name in Execution.model_fields}
    named = {code for one in page() for code in re.findall(r"`([a-z_]+\.[a-z_]+)`", one.prose)}
    assert not named - known
