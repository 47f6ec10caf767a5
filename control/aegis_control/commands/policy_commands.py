"""`policy`: what is in force, whether a file is good, and what would be decided."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from aegis_protocol.actions import Action, Role
from aegis_protocol.board import BoardWish
from aegis_protocol.failures.http import BadRequest, PolicyInvalid
from aegis_protocol.http_api.grants import GrantWish
from aegis_protocol.http_api.policy import PolicyCheckRequest, PolicyDecision, PolicyShown
from aegis_protocol.http_api.toolchains import ToolchainWish
from pydantic import ValidationError

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.config_sources import load
from aegis_control.key_limits import from_words
from aegis_control.policy.reading import read
from aegis_control.policy.rules import Policy

app = typer.Typer(help="Who may do what.", no_args_is_help=True)

_DENIED = 10
"""The exit code of a check that says no."""


@app.command("validate", epilog="Example: aegis-control policy validate ./policy.toml")
def validate(
    file: Annotated[
        Path | None, typer.Argument(help="The file. [AEGIS_POLICY_FILE, /etc/aegis/policy.toml]")
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Say what is wrong with a policy file, by line and field; control need not run.
    """
    path = file or load().config.policy_file
    if path is None:
        raise PolicyInvalid("no policy file is set", remedy="Name one: `policy validate FILE`.")
    try:
        policy = read(path)
    except FileNotFoundError as exc:
        raise PolicyInvalid(
            f"{path} is not there", remedy="Name another file, or write it.", path=str(path)
        ) from exc
    if as_json:
        typer.echo(json.dumps({"status": "ok", "file": str(path), "rules": len(policy.rules)}))
        return
    typer.echo(f"{path} is good: {len(policy.rules)} rules.")


@app.command("show", epilog="Example: aegis-control policy show")
def show(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """
    Show the policy in force at the running control.
    """
    shown = Asking(url, key_file, state_dir).get("/services/policy", PolicyShown)
    if as_json:
        typer.echo(shown.model_dump_json(indent=2))
        return
    if shown.trouble is not None:
        typer.echo(f"STALE, an older one counts: {shown.trouble['message']}", err=True)
    if shown.file is None:
        typer.echo("No policy file: everybody gets what the role gives.")
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(shown.loaded_at))
    typer.echo(f"{shown.file}, read {at}, sha256 {shown.sha256[:16]}")
    rules = Policy.model_validate({"rules": shown.rules}).rules
    print_table(
        ("RULE", "FOR", "NARROWS TO"),
        [
            (rule.name, *_told(rule.model_dump(mode="json", exclude_defaults=True)))
            for rule in rules
        ],
    )


@app.command(
    "check",
    epilog="Example: aegis-control policy check --role builder --channels serial",
)
def check(
    channels: Annotated[
        str, typer.Option(help="What it would require, comma between.")
    ] = "espctl,source,pty,firmware",
    key: Annotated[
        str | None, typer.Option(help="A key's id (never the key itself), or mcp.")
    ] = None,
    role: Annotated[
        Role | None, typer.Option(help="In place of --key: a key of that role.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="With --role: a limit of the key, KIND=WORD.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="A chip, such as esp32p4.")] = None,
    toolchain: Annotated[str | None, typer.Option(help="platformio or esp-idf.")] = None,
    board: Annotated[list[str] | None, typer.Option(help="A board's id; several times.")] = None,
    action: Annotated[
        list[Action] | None, typer.Option(help="Several times; by default all that it may.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="An agent's id or name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label that the agent must have, K=V; several times.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Of waiting jobs a higher one goes first.")
    ] = None,
    timeout_secs: Annotated[
        int, typer.Option(min=1, max=86_400, help="How long the job may take.")
    ] = 600,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """
    Say what a request for a grant would get, and by which rule; nothing is made. Exits 10 when it
    would be refused.
    """
    if (key is None) == (role is None):
        raise BadRequest(
            "a decision is about a key or about a role",
            remedy="Name one of the two: --key ID (or mcp), or --role with --limit.",
            field="key",
        )
    if key is not None and key.startswith("aegis_sk_"):
        raise BadRequest(
            "--key takes the id alone",
            remedy="Give the part between `aegis_sk_` and the next `_`; a whole key in a command "
            "line is seen by every process.",
            field="key",
        )
    try:
        body = PolicyCheckRequest(
            key_id=key or "anybody",
            role=role,
            limits=from_words(limit or []),
            wish=GrantWish(
                required_channels=_words(channels),
                target=target,
                toolchain=None if toolchain is None else ToolchainWish(kind=toolchain),
                actions=None if action is None else tuple(action),
                agent_id=agent,
                boards=tuple(BoardWish(id=board_id) for board_id in board or ()),
                timeout_secs=timeout_secs,
                labels=dict(_pair(word) for word in label or ()),
                priority=priority,
            ),
        )
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False)[0]
        field = str(wrong["loc"][-1])
        raise BadRequest(f"{field}: {wrong['msg']}", field=field) from exc
    asking = Asking(url, key_file, state_dir)
    decision = asking.post("/services/policy/check", body, PolicyDecision)
    typer.echo(decision.model_dump_json(indent=2) if as_json else _sentence(decision))
    if not decision.allowed:
        raise typer.Exit(_DENIED)


def _sentence(decision: PolicyDecision) -> str:
    who = f"{decision.identity} ({decision.role})"
    if not decision.allowed:
        lines = [f"refused for {who}, by {decision.rule}"]
        for reason in decision.reasons:
            lines += [f"  {reason.message} [{reason.code}; {reason.rule}]", f"    {reason.remedy}"]
        return "\n".join(lines)
    limits = {kind: ", ".join(words) for kind, words in decision.limits.items()}
    limits["job seconds"] = str(decision.max_job_secs)
    if decision.max_bandwidth_kbps:
        limits["kbit/s"] = str(decision.max_bandwidth_kbps)
    if decision.max_message_rate:
        limits["messages per second"] = str(decision.max_message_rate)
    return "\n".join(
        [
            f"allowed for {who}, by {decision.rule}",
            f"  channels: {', '.join(decision.channels)}",
            f"  actions: {', '.join(decision.actions) or 'none'}",
            *(f"  {kind}: {words}" for kind, words in limits.items()),
        ]
    )


def _told(rule: dict[str, Any]) -> tuple[str, str]:
    """Whom a rule is for, and to what it narrows, in words."""
    whom = [*rule.get("identities", ()), *(f"role {role}" for role in rule.get("roles", ()))]
    if "deny" in rule:
        return ", ".join(whom) or "everybody", f"nothing: {rule['deny']}"
    kinds = ("channels", "actions", "targets", "boards", "agents", "labels")
    narrows = [f"{kind} {', '.join(rule[kind]) or 'none'}" for kind in kinds if kind in rule]
    narrows += [f"{name} {value}" for name, value in rule.get("limits", {}).items()]
    return ", ".join(whom) or "everybody", "; ".join(narrows) or "what the role gives"


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise BadRequest(f"--label {text[:40]}: written as site=lab1", field="--label")
    return name, value


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
