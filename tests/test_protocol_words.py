"""The small words: errors that come back as themselves, actions, manifests, models."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from aegis_protocol import failures, rpc
from aegis_protocol.actions import METHOD_ACTION, RANK, ROLE_ACTIONS, Action, Role, allowed
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import TO_AGENT, TO_CONTROL, SignalCandidate
from aegis_protocol.errors import (
    AegisError,
    ErrorBody,
    ErrorReply,
    RemoteError,
    from_body,
    known_codes,
)
from aegis_protocol.failures.board import BoardGone
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.manifest import FlashImage, Manifest, ToolchainUsed, canonical
from aegis_protocol.model import Wire
from error_classes import error_classes
from pydantic import TypeAdapter, ValidationError

assert failures
CODES = sorted({code for _, code in error_classes()})


@pytest.mark.parametrize("code", CODES)
def test_an_error_comes_back_from_a_wire_as_its_own_class(code: str) -> None:
    cls = known_codes()[code]
    body = ErrorBody(code=code, message="what happened", remedy="what to do", facts={"n": 1})
    again = from_body(
        ErrorReply.model_validate_json(ErrorReply(error=body).model_dump_json()).error
    )
    assert type(again) is cls
    assert (again.message, again.remedy, again.facts) == ("what happened", "what to do", {"n": 1})
    assert str(again) == "what happened"
    assert again.body().code == code


def test_an_error_without_a_remedy_gets_its_classs_own() -> None:
    again = from_body(ErrorBody(code="board.gone", message="gone"))
    assert isinstance(again, BoardGone)
    assert again.remedy == BoardGone.remedy
    assert again.retryable


@pytest.mark.parametrize("retryable", [True, False])
def test_a_code_that_is_not_known_is_kept_with_all_that_was_said(retryable: bool) -> None:
    body = ErrorBody(
        code="moon.full", message="m", remedy="wait", retryable=retryable, facts={"a": 1}
    )
    again = from_body(body)
    assert type(again) is RemoteError
    assert again.body() == body
    assert again.retryable is retryable


def test_a_peer_cant_make_us_believe_in_an_error_of_our_own_bookkeeping() -> None:
    assert type(from_body(ErrorBody(code="remote.error", message="m"))) is RemoteError


@pytest.mark.parametrize("code", ["", "x", "Board.gone", "board.", "board gone.x", "a" * 80 + ".b"])
def test_a_code_that_is_none_is_no_error_body(code: str) -> None:
    with pytest.raises(ValidationError):
        ErrorBody(code=code, message="m")


def test_a_long_message_is_cut_so_that_it_fits_a_wire() -> None:
    body = AegisError("m" * 10_000, remedy="r" * 10_000).body()
    assert (len(body.message), len(body.remedy)) == (4096, 4096)


def test_one_code_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="belongs to BoardGone"):
        type("Impostor", (AegisError,), {"code": "board.gone", "remedy": ""})
    assert known_codes()["board.gone"] is BoardGone


def test_every_method_stands_in_the_table_of_actions_and_no_other_does() -> None:
    assert METHOD_ACTION.keys() == rpc.METHODS.keys()


def test_a_method_is_allowed_exactly_with_its_action() -> None:
    for method, needed in METHOD_ACTION.items():
        others = frozenset(Action) - {needed}
        assert allowed(method, frozenset(Action))
        assert allowed(method, others) == (needed is None)
    assert not allowed("shell.run", frozenset(Action))


def test_a_higher_role_may_all_that_a_lower_one_may() -> None:
    assert sorted(Role, key=lambda role: RANK[role]) == [
        Role.VIEWER,
        Role.BUILDER,
        Role.FLASHER,
        Role.OPERATOR,
    ]
    ordered = [ROLE_ACTIONS[role] for role in sorted(Role, key=lambda role: RANK[role])]
    assert all(low <= high for low, high in pairwise(ordered))
    assert ordered[-1] == frozenset(Action)
    assert Action.SOURCE_WRITE not in ROLE_ACTIONS[Role.VIEWER]
    assert Action.BOARD_FLASH not in ROLE_ACTIONS[Role.BUILDER]


def manifest(**changed: Any) -> Manifest:
    image = FlashImage(
        name="app", path="firmware.bin", offset=65_536, size_bytes=5, sha256="a" * 64
    )
    facts: dict[str, Any] = {
        "project": "größe",
        "target": "esp32p4",
        "images": (image,),
        "toolchain": ToolchainUsed(kind="platformio", version="6.2.0"),
        "source_sha256": "b" * 64,
    }
    return Manifest(**facts | changed)


def test_a_manifest_has_one_spelling() -> None:
    raw = manifest().to_bytes()
    assert raw == manifest().to_bytes()
    assert raw.endswith(b"}\n")
    assert "größe".encode() in raw
    assert list(json.loads(raw)) == sorted(json.loads(raw))
    turned = dict(reversed(list(json.loads(raw).items())))
    assert Manifest.model_validate(turned).to_bytes() == raw
    assert Manifest.model_validate_json(raw).to_bytes() == raw
    assert manifest(version="2").to_bytes() != raw


def test_canonical_json_is_sorted_all_the_way_down() -> None:
    assert canonical({"b": {"z": 1, "a": 2}, "a": []}) == (
        b'{\n  "a": [],\n  "b": {\n    "a": 2,\n    "z": 1\n  }\n}\n'
    )


def every_model() -> set[type[Wire]]:
    found: set[type[Wire]] = set()
    waiting: list[type[Wire]] = [Wire]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        found |= {cls for cls in below if cls.__module__.startswith("aegis_protocol")}
    return found


def test_every_model_is_frozen_and_deaf_to_what_it_does_not_know() -> None:
    assert len(every_model()) > 80
    for model in every_model():
        assert model.model_config.get("frozen"), model
        assert model.model_config.get("extra") == "ignore", model


def test_a_frame_with_a_field_of_the_future_is_understood() -> None:
    text = '{"type":"signal.candidate","job_id":"j","jti":"t","candidate":"","colour":"red"}'
    assert TO_AGENT.validate_json(text) == SignalCandidate(job_id="j", jti="t", candidate="")
    assert TO_CONTROL.validate_json(text) == SignalCandidate(job_id="j", jti="t", candidate="")


@pytest.mark.parametrize("adapter", [TO_AGENT, TO_CONTROL], ids=["to agent", "to control"])
@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"type":"shell.run"}', '{"type":7}', "{"]
)
def test_what_is_no_frame_is_refused(adapter: TypeAdapter[Any], text: str) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_json(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"peer_fingerprint": "sha-256:AB"},
        {"peer_fingerprint": "sha-1:" + ":".join(["AB"] * 32)},
        {"required_channels": []},
        {"required_channels": ["../etc"]},
        {"required_channels": ["espctl"] * 17},
        {"target": "ESP 32"},
        {"agent_id": "a/../b"},
        {"timeout_secs": 0},
        {"memory_mb": -1},
        {"cpu_cores": "many"},
        {"labels": {"a b": "c"}},
        {"actions": ["root"]},
    ],
    ids=str,
)
def test_a_request_for_a_grant_that_makes_no_sense_is_refused(changed: dict[str, Any]) -> None:
    good = {"peer_fingerprint": "sha-256:" + ":".join(["AB"] * 32), "required_channels": ["espctl"]}
    assert GrantRequest.model_validate(good)
    with pytest.raises(ValidationError):
        GrantRequest.model_validate(good | changed)


def test_a_channel_that_has_a_meaning_may_be_asked_for() -> None:
    fingerprint = "sha-256:" + ":".join(["AB"] * 32)
    wish = GrantRequest(peer_fingerprint=fingerprint, required_channels=tuple(ChannelName))
    assert wish.required_channels == tuple(ChannelName)
