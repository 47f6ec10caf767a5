"""`policy check` and the real request never disagree: random keys, policies and requests."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jwt
import pytest
from aegis_control.store import keys, tables
from aegis_protocol.actions import ROLE_ACTIONS, Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.http_api.policy import PolicyDecision
from control_fixtures import Bench, Client, bench, board, key_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.both_stores

CHANNELS = [str(name) for name in ChannelName]
TARGETS = ["esp32", "esp32p4", "esp32c6"]
AGENTS = ["rack", "desk"]
BOARDS = ["p4-1", "p4-2", "elsewhere"]
LABELS = ["site=lab1", "site=lab2", "room=1"]


def some(words: list[str], *, least: int = 0) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(words), unique=True, min_size=least)


def maybe(**kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of `kinds`, most of the time few."""
    return st.fixed_dictionaries({}, optional=kinds)


LIMITS = maybe(
    channels=some(CHANNELS, least=1),
    targets=some(TARGETS, least=1),
    boards=some(BOARDS, least=1),
    agents=some(AGENTS, least=1),
    labels=some(LABELS, least=1),
    jobs=st.sampled_from([["1"], ["5"]]),
)
RULE_LIMITS = maybe(
    max_bandwidth_kbps=st.integers(1, 5000),
    max_message_rate=st.integers(1, 5000),
    max_job_secs=st.sampled_from([60, 600, 5000]),
    max_jobs=st.integers(1, 9),
    priority=st.integers(-100, 100),
)


@st.composite
def rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(0, 3))):
        rule = draw(
            maybe(
                roles=some(list(Role), least=1),
                deny=st.just("not today"),
                channels=some(CHANNELS),
                actions=some(list(Action)),
                targets=some(TARGETS),
                boards=some(BOARDS),
                agents=some(AGENTS),
                labels=some(LABELS, least=1),
            )
        )
        # Most rules that say no are dull: what they hide is what is looked for.
        if "deny" in rule and draw(st.integers(0, 3)):
            del rule["deny"]
        roles = [Role(role) for role in rule.get("roles", ())]
        if roles and "actions" in rule:
            may = frozenset[Action]().union(*(ROLE_ACTIONS[role] for role in roles))
            rule["actions"] = [action for action in rule["actions"] if action in may]
        found.append({"name": f"r{number}", **rule, "limits": draw(RULE_LIMITS)})
        if not roles:
            break  # it is for everybody: none could stand below it
    return found


WISHES = st.fixed_dictionaries(
    {"required_channels": some([*CHANNELS, "espctl", "video"], least=1)},
    optional={
        "actions": some(list(Action)),
        "target": st.sampled_from([*TARGETS, "esp99"]),
        "agent_id": st.sampled_from([*AGENTS, "nobody"]),
        "boards": st.lists(
            st.one_of(
                st.sampled_from(BOARDS).map(lambda board_id: {"id": board_id}),
                st.just({"chip": "esp32p4"}),
            ),
            max_size=2,
        ),
        "priority": st.sampled_from([-5, 0, 1, 100]),
        "timeout_secs": st.sampled_from([60, 600, 3600, 5000]),
        "toolchain": st.sampled_from(
            [{"kind": "platformio"}, {"kind": "platformio", "version": "newest"}]
        ),
    },
)


def toml(found: list[dict[str, Any]]) -> str:
    lines = []
    for rule in found:
        lines.append("[[rules]]")
        lines += [
            f"{name} = {json.dumps(value)}" for name, value in rule.items() if name != "limits"
        ]
        lines.append("[rules.limits]")
        lines += [f"{name} = {value}" for name, value in rule["limits"].items()]
    return "\n".join(lines)


class Pair:
    """A control with two agents, asked twice about the same thing."""

    def __init__(self, bench: Bench, policy: Path, operator: Client) -> None:
        self.bench = bench
        self.policy = policy
        self.operator = operator
        self.seen: Counter[str] = Counter()

    async def compare(
        self,
        found: list[dict[str, Any]],
        role: Role,
        limits: dict[str, list[str]],
        state: str,
        wish: dict[str, Any],
    ) -> None:
        self.policy.write_text(toml(found))
        assert self.bench.served.control.policy.reload().told == "file"
        key = await key_of(self.bench.served, role, **{k: tuple(v) for k, v in limits.items()})
        key_id = key.split("_")[2]
        await self.spoil(key_id, state)
        client = self.bench.client(key)

        asked = await self.operator.ask(
            "POST", "/services/policy/check", {"key_id": key_id, "wish": wish}
        )
        assert asked.status == 200, asked.body
        check = PolicyDecision.model_validate(asked.body)
        real = await client.request(**wish)

        self.seen["granted" if real.status == 200 else real.body.get("error", {}).get("code")] += 1
        if not check.allowed:
            assert real.status >= 400, (check, real.body)
            assert real.body["error"] == check.error
            return
        assert real.status in (200, 202), (check, real.body)
        if real.status == 200:
            claims = jwt.decode(real.body["grant"], options={"verify_signature": False})
            assert tuple(claims["webrtc"]["allowed_channels"]) == check.channels
            assert tuple(claims["actions"]) == check.actions
            assert claims["webrtc"]["max_bandwidth_kbps"] == check.max_bandwidth_kbps
            assert claims["webrtc"]["max_message_rate"] == check.max_message_rate
            assert claims["execution"]["timeout_secs"] <= check.max_job_secs
            again = await client.request(**wish, job_id=real.body["job_id"])
            assert again.status == 200, again.body
        assert (await client.ask("DELETE", f"/jobs/{real.body['job_id']}")).status == 200

    async def spoil(self, key_id: str, state: str) -> None:
        async with self.bench.served.control.database.write() as conn:
            if state == "revoked":
                await keys.revoke(conn, key_id, now_s=time.time())
            if state == "expired":
                statement = tables.keys.update().where(tables.keys.c.id == key_id)
                await conn.execute(statement.values(expires_at=1.0))


@pytest.mark.long
def test_a_check_and_the_real_request_never_disagree() -> None:
    folder = Path(tempfile.mkdtemp(prefix="aegis-policy-"))
    policy = folder / "policy.toml"
    policy.write_text("")
    asyncio.set_event_loop_policy(None)
    with asyncio.Runner() as runner:
        opened = bench(
            folder / "s",
            policy_file=policy,
            allowed_channels=("espctl", "source", "pty", "serial"),
            max_bandwidth_kbps=3000,
            max_job_secs=3600,
            max_waiting_jobs=1_000_000,
            link_timeout_s=600,
            rate_failures="100000/minute",
        )
        b = runner.run(opened.__aenter__())
        try:
            runner.run(b.agent("rack", slots=200, labels={"site": "lab1"}, boards=(board("p4-1"),)))
            runner.run(b.agent("desk", slots=200, labels={"room": "1"}, boards=(board("p4-2"),)))
            pair = Pair(b, policy, b.client(runner.run(key_of(b.served, Role.OPERATOR))))

            @settings(
                max_examples=150,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(
                found=rules(),
                role=st.sampled_from(list(Role)),
                limits=LIMITS,
                state=st.sampled_from(["good"] * 8 + ["revoked", "expired"]),
                wish=WISHES,
            )
            def agree(**example: Any) -> None:
                runner.run(pair.compare(**example))

            agree()
            assert pair.seen["granted"] > 10, pair.seen
            assert len(pair.seen) > 6, "too few kinds of refusal were met"
        finally:
            runner.run(opened.__aexit__(None, None, None))
            shutil.rmtree(folder)
