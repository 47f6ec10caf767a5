"""
Every endpoint but the endless streams, asked what its own document allows and what it forbids.

A real control on a real socket is asked over HTTP by schemathesis; the seed stands, so that the
same requests are made each time. No answer may be a 500, and each must be one of the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from aegis_control.http.openapi import document
from aegis_control.http.routes import ROUTES
from aegis_protocol.actions import Role
from control_fixtures import Bench, bench, board, key_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from structlog.testing import capture_logs

EXAMPLES = 10
FITTING: dict[str, dict[str, Any]] = {
    "/grant/request": {
        "required_channels": ["espctl"],
        "timeout_secs": 60,
        **dict.fromkeys(("actions", "target", "toolchain", "agent_id", "job_id")),
    },
    "/leases": {
        "board": {"chip": "esp32p4"},
        "for_secs": 60,
        "wait_secs": 60,
        "agent_id": None,
    },
    "/leases/{lease_id}/renew": {"for_secs": 60},
    "/services/policy/check": {"role": "viewer", "key_id": None, "limits": {}},
}
"""What makes a request that the document allows one that control can say yes to."""
STREAMS = {(route.method, route.path) for route in ROUTES if route.streams}
OFF = {"rate_failures": "off", "rate_per_key": "off", "rate_per_address": "off"}
DOCUMENT = schemathesis.openapi.from_dict(document(ROUTES))
OPERATIONS: dict[tuple[str, str], Any] = {
    (found.ok().method.upper(), found.ok().path): found.ok()
    for found in DOCUMENT.get_all_operations()
    if isinstance(found, Ok)
}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def test_every_route_is_an_operation() -> None:
    assert set(OPERATIONS) == {(route.method, route.path) for route in ROUTES}


@pytest.mark.long
async def test_no_answer_is_a_500_and_every_one_is_in_the_document(
    tmp: Path, logs: list[Any]
) -> None:
    async with bench(tmp / "s", max_waiting_jobs=100_000, **OFF) as b:
        await b.agent("lab", boards=(board("p4-1"),))
        known = await _known(b)
        key = await key_of(b.served, Role.OPERATOR)
        lease = await b.client(key).ask("POST", "/leases", {"board": {"id": "p4-1"}})
        known["lease_id"] = [lease.body["id"]]
        asked = await asyncio.to_thread(_ask_all, b.base_url, key, known)
    crashed = [entry for entry in logs if entry["event"] == "request.crashed"]
    assert crashed == []
    assert set(asked) == set(OPERATIONS) - STREAMS
    assert asked["POST", "/grant/request"] & {200, 202}
    said_yes = {name for name, statuses in asked.items() if min(statuses) < 300}
    assert len(said_yes) > len(asked) - 6, set(asked) - said_yes


async def _known(b: Bench) -> dict[str, list[str]]:
    """Values of path parameters that there are, so that more than 404 is seen."""
    client = b.client()
    grant = await client.granted()
    control = b.served.control
    (agent,) = (await client.ask("GET", "/agents")).body["agents"]
    return {
        "job_id": [grant.job_id],
        "agent_id": [agent["id"], "lab"],
        "key_id": [(await control.keyring.make_key(Role.VIEWER)).id],
        "token_id": [(await control.keyring.make_token(ttl_s=60, name=None)).id],
    }


def _ask_all(base_url: str, key: str, known: dict[str, list[str]]) -> dict[Any, set[int]]:
    """Ask every operation, with a key and without; return the statuses of each."""
    statuses: dict[Any, set[int]] = {}
    wrong = []
    with requests.Session() as session:
        for name, operation in sorted(OPERATIONS.items(), key=_removes):
            if name not in STREAMS:
                try:
                    statuses[name] = _ask(operation, session, base_url, key, known)
                except (AssertionError, BaseExceptionGroup, requests.RequestException) as exc:
                    wrong.append((name, exc))
    assert not wrong, "\n\n".join(f"{name}: {exc}" for name, exc in wrong)
    return statuses


def _removes(found: tuple[tuple[str, str], Any]) -> bool:
    """What takes something away comes last: there is nothing to ask of it afterwards."""
    (method, path), _ = found
    return method == "DELETE" or path.endswith("/revoke")


def _ask(
    operation: Any,
    session: requests.Session,
    base_url: str,
    key: str,
    known: dict[str, list[str]],
) -> set[int]:
    seen: set[int] = set()

    def answer(case: Any, headers: dict[str, str]) -> None:
        response = case.call(base_url=base_url, session=session, headers=headers, timeout=20)
        seen.add(response.status_code)
        assert response.status_code != 500, f"{operation.label}: {response.text}"
        case.validate_response(response, checks=_CHECKS)

    for mode in GenerationMode:

        @seed(20_260_101)
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer(case, {"Authorization": f"Bearer {key}"})

        nothing_to_forbid = suppress(Unsatisfiable) if mode.is_negative else nullcontext()
        with nothing_to_forbid:
            ask()

    @seed(20_260_101)
    @settings(
        max_examples=3,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask_for_what_there_is(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body |= FITTING.get(operation.path, {})
            answer(case, {"Authorization": f"Bearer {key}"})
        for name, values in known.items():
            if name in case.path_parameters:
                for value in values:
                    case.path_parameters[name] = value
                    answer(case, {"Authorization": f"Bearer {key}"})
        answer(case, {})

    ask_for_what_there_is()
    return seen


_CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
