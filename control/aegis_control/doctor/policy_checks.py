"""The policy file: there, for control to read and no stranger to write; and rules that match."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.agents import Agent

from aegis_control.config_sources import default_policy_file
from aegis_control.doctor.check import Check, error, failed, ok, skipped, warning
from aegis_control.doctor.subject import Answers, Subject
from aegis_control.identity import LOCAL, MCP
from aegis_control.policy.reading import read
from aegis_control.policy.rules import Policy, Rule

_NAMED: Final = 5


def policy(subject: Subject) -> tuple[Check, Check]:
    """The check of the file, and that of its rules."""
    path = subject.config.policy_file
    if path is None or (path == default_policy_file() and _is_missing(path)):
        return (
            ok("policy_file", "there is none: the roles alone count"),
            skipped("policy_rules", "there is no policy file"),
        )
    try:
        found = read(path)
    except FileNotFoundError:
        missing = error(
            "policy_file",
            f"{path} is not there, and control does not start without it",
            "Put it back, or unset AEGIS_POLICY_FILE.",
        )
        return missing, skipped("policy_rules", "the policy file can't be read")
    except AegisError as exc:
        return failed("policy_file", exc), skipped("policy_rules", "the policy file is bad")
    return _open_to_strangers(subject, path) or ok(
        "policy_file", f"{path}, {len(found.rules)} rules"
    ), rules(subject, found)


def rules(subject: Subject, found: Policy) -> Check:
    """What the rules name and nothing is called: a slip of the pen lets nobody in, or everybody."""
    if subject.answers is None:
        return skipped("policy_rules", "no control answers")
    known = _Known(subject.answers, has_mcp=subject.config.mcp_auth_secret is not None)
    strange = [f"rule {rule.name}: {word}" for rule in found.rules for word in known.lacks(rule)]
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        return warning(
            "policy_rules",
            f"nothing here is called so: {'; '.join(strange[:_NAMED])}{more}",
            "Correct the file (`keys list`, `list-agents`, `list-boards` have the names), then "
            "reload control. What is only away or not made yet may stay.",
        )
    return ok("policy_rules", "all that they name is there")


class _Known:
    """The names that there are."""

    def __init__(self, answers: Answers, *, has_mcp: bool) -> None:
        now_s = time.time()
        good = (
            key
            for key in answers.keys
            if not key.revoked and (key.expires_at is None or key.expires_at > now_s)
        )
        agents = answers.agents
        shared = {MCP} if has_mcp else set()
        self._names: dict[str, set[str]] = {
            "identity": {key.id for key in good} | shared | {LOCAL},
            "agent": {name for agent in agents for name in (agent.id, agent.name)},
            "label": {f"{k}={v}" for agent in agents for k, v in agent.labels.items()},
            "target": {target for agent in agents for target in _targets(agent)},
            "board": {board.id for agent in agents for board in agent.boards},
        }

    def lacks(self, rule: Rule) -> Iterator[str]:
        """What the rule names and is not there: `identity k4q2`."""
        named: tuple[tuple[str, Iterable[str] | None], ...] = (
            ("identity", rule.identities),
            ("agent", rule.agents),
            ("label", rule.labels),
            ("target", rule.targets),
            ("board", rule.boards),
        )
        for kind, words in named:
            for word in words or ():
                if word not in self._names[kind]:
                    yield f"{kind} {word}"


def _targets(agent: Agent) -> set[str]:
    return {*agent.targets, *(t for chain in agent.toolchains for t in chain.targets)}


def _open_to_strangers(subject: Subject, path: Path) -> Check | None:
    """Whoever may write the file decides who may do what."""
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        return error(
            "policy_file",
            f"{path} can be written by others (mode {mode:o})",
            f"chmod go-w {path}, and look at what it says: aegis-control policy show",
        )
    owners = {0, os.geteuid()}
    if found.st_uid not in owners:
        return error(
            "policy_file",
            f"{path} belongs to another user (uid {found.st_uid})",
            f"chown root {path}, and look at what it says: aegis-control policy show",
        )
    return None


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
