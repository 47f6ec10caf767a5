"""The policy file: what it says, what is wrong with it, and what is decided by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aegis_control.config import ControlConfig
from aegis_control.identity import Identity
from aegis_control.policy.decision import Decision, Known, Settings, decide
from aegis_control.policy.in_force import PolicyInForce
from aegis_control.policy.reading import parse, read
from aegis_control.policy.rules import NO_POLICY, Policy
from aegis_control.store.agents import AgentRecord
from aegis_protocol.actions import ROLE_ACTIONS, Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.http import PolicyInvalid
from aegis_protocol.http_api.grants import GrantWish
from house import ROOT

SETTINGS = Settings(tuple(ChannelName), max_bandwidth_kbps=0, max_message_rate=0, max_job_secs=3600)

FILE = """
version = 1

[[rules]]
name = "ci"
identities = ["abcdefgh"]
channels = ["espctl", "source", "firmware"]
actions = ["build.run", "source.write", "artifact.read"]
targets = ["esp32p4"]
boards = []
agents = ["rack-1", "rack-2"]

[rules.limits]
max_bandwidth_kbps = 2000
max_message_rate = 50
max_job_secs = 900
max_jobs = 2
priority = -5

[[rules]]
name = "guests"
roles = ["viewer"]
deny = "viewers look at the page"

[[rules]]
name = "the-rest"
boards = ["bench-1"]
labels = ["site=lab1"]
"""


def decided(
    role: Role = Role.FLASHER,
    *,
    policy: Policy = NO_POLICY,
    id: str = "someone",
    limits: dict[str, tuple[str, ...]] | None = None,
    settings: Settings = SETTINGS,
    known: Known | None = None,
    **wish: Any,
) -> Decision:
    asked = GrantWish.model_validate({"required_channels": ["espctl"]} | wish)
    identity = Identity(id, role, limits or {})
    return decide(identity, policy, settings, asked, known or Known())


def code(decision: Decision) -> str | None:
    return None if decision.error is None else decision.error.code


def agent(name: str) -> AgentRecord:
    return AgentRecord(f"ag-{name}", name, b"", 0, None, None)


@pytest.mark.parametrize("role", Role)
def test_without_a_policy_a_role_gets_all_that_it_may(role: Role) -> None:
    decision = decided(role)
    assert (decision.allowed, decision.rule) == (True, f"role {role}")
    assert set(decision.actions) == ROLE_ACTIONS[role]
    assert decision.limits.max_job_secs == 3600


def test_the_first_rule_that_is_for_the_caller_is_the_only_one() -> None:
    policy = parse(FILE, name="p")
    assert decided(policy=policy, id="abcdefgh").rule == "policy rule ci"
    assert decided(policy=policy).rule == "policy rule the-rest"
    denied = decided(Role.VIEWER, policy=policy)
    assert (denied.allowed, denied.rule, code(denied)) == (
        False,
        "policy rule guests",
        "policy.denied",
    )
    assert "viewers look at the page" in str(denied.error)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"required_channels": ["espctl", "pty"]}, "channel.not_allowed"),
        ({"actions": ["board.flash"]}, "action.not_allowed"),
        ({"target": "esp32"}, "target.not_allowed"),
        ({"boards": [{"id": "bench-1"}]}, "board.not_allowed"),
        ({"agent_id": "desk"}, "agent.not_allowed"),
        ({"agent_id": "rack-2", "target": "esp32p4", "timeout_secs": 900}, None),
        ({"timeout_secs": 901}, "request.invalid"),
    ],
)
def test_a_rule_narrows_each_thing_by_itself(wish: dict[str, Any], expected: str | None) -> None:
    known = Known(agents=(agent("rack-2"), agent("desk")))
    decision = decided(policy=parse(FILE, name="p"), id="abcdefgh", known=known, **wish)
    assert code(decision) == expected
    assert decision.rule == "policy rule ci"


def test_a_grant_holds_the_lower_of_the_settings_and_the_rules_limits() -> None:
    policy = parse(FILE, name="p")
    strict = Settings(tuple(ChannelName), 1000, 0, 300)
    limits = decided(policy=policy, id="abcdefgh", settings=strict, timeout_secs=300).limits
    assert (limits.max_bandwidth_kbps, limits.max_message_rate, limits.max_job_secs) == (
        1000,
        50,
        300,
    )


def test_a_job_keeps_where_it_may_go_for_the_scheduler() -> None:
    policy = parse(FILE, name="p")
    ci = decided(policy=policy, id="abcdefgh", limits={"jobs": ("9",), "labels": ("a=b",)})
    assert ci.limits.placement == {
        "jobs": ("2",),
        "labels": ("a=b",),
        "boards": (),
        "policy.agents": ("rack-1", "rack-2"),
        "priority": ("-5",),
    }
    rest = decided(policy=policy, limits={"boards": ("bench-2", "bench-1")})
    assert rest.limits.placement == {"boards": ("bench-1",), "policy.labels": ("site=lab1",)}


def test_all_that_refuses_is_told_and_the_first_of_it_decides() -> None:
    decision = decided(
        Role.VIEWER,
        settings=Settings(("espctl",), 0, 0, 600),
        limits={"targets": ("esp32",)},
        required_channels=["espctl", "serial"],
        actions=["console.read"],
        target="esp32p4",
        timeout_secs=601,
    )
    assert [(why.rule, why.error.code) for why in decision.reasons] == [
        ("ALLOWED_CHANNELS", "channel.not_allowed"),
        ("role viewer", "role.insufficient"),
        ("key someone: limit targets", "target.not_allowed"),
        ("AEGIS_MAX_JOB_SECS", "request.invalid"),
    ]
    assert decision.rule == "ALLOWED_CHANNELS"
    assert (decision.channels, decision.actions) == ((), ())


def test_a_rule_never_gives_more_than_the_role() -> None:
    policy = Policy.model_validate({"rules": [{"name": "all", "actions": list(Action)}]})
    assert set(decided(Role.BUILDER, policy=policy).actions) == ROLE_ACTIONS[Role.BUILDER]
    asks = decided(Role.BUILDER, policy=policy, actions=["board.flash"])
    assert code(asks) == "role.insufficient"


def test_the_agent_that_a_job_has_must_still_be_permitted() -> None:
    known = Known(placed=agent("desk"))
    refused = decided(policy=parse(FILE, name="p"), id="abcdefgh", known=known)
    assert code(refused) == "agent.not_allowed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[rules]]\nname = "a"\nchanels = []\n', "line 3: rule a: chanels: no such field; did"),
        (
            '[[rules]]\nname = "a"\n[rules.limits]\nmax_jobs = 0\n',
            "line 4: rule a: limits.max_jobs",
        ),
        ('[[rules]]\nname = "a"\nlimits.priority = 200\n', "line 3: rule a: limits.priority"),
        ('[[rules]]\nname = "a"\n[[rules]]\nname = "b"\nroles = ["root"]\n', "line 5: rule b"),
        ('[[rules]]\nroles = ["viewer"]\n', "line 1: rule 1: name: Field required"),
        ('[[rules]]\nname = "a"\n[[rules]]\nname = "b"\n', "b can never apply: a above it"),
        ('[[rules]]\nname = "a"\nroles=["viewer"]\n[[rules]]\nname = "a"\n', "two rules"),
        ('[[rules]]\nname = "a"\nroles = ["viewer"]\nactions = ["board.flash"]\n', "only narrows"),
        ("version = 2\n", "line 1: version"),
        ("vers = 1\n", "line 1: vers: no such field; did you mean version?"),
        ("[[rules\n", "not TOML"),
        ("since = 2026-01-01\n", "a date or time has no meaning"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(text: str, says: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        parse(text, name="policy.toml")
    assert says in refused.value.message
    assert refused.value.message.startswith("policy.toml")


def test_the_example_policy_is_good() -> None:
    assert read(ROOT / "systemd" / "policy.toml").rules


def test_a_file_that_turned_bad_leaves_the_old_one_in_force(tmp: Path) -> None:
    path = tmp / "policy.toml"
    path.write_text(FILE)
    book = PolicyInForce(path, required=True)
    path.write_text("[[rules]]\n")
    assert book.reload().told == "stale"
    assert len(book.policy.rules) == 3
    assert "name: Field required" in str(book.standing.trouble)
    path.unlink()
    assert "is not there" in str(book.reload().trouble)
    path.write_text('[[rules]]\nname = "one"\n')
    assert book.reload().told == "file"
    assert len(book.policy.rules) == 1


def test_no_file_where_none_need_be_is_no_policy(tmp: Path) -> None:
    assert PolicyInForce(tmp / "policy.toml", required=False).policy == NO_POLICY
    with pytest.raises(PolicyInvalid, match="is not there"):
        PolicyInForce(tmp / "policy.toml", required=True)


def test_the_settings_name_no_policy_by_themselves() -> None:
    assert ControlConfig().policy_file is None
