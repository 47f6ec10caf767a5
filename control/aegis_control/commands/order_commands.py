"""`pause-agent`, `resume-agent`, `drain-agent`, `reset-agent`: what an operator orders of one."""

from __future__ import annotations

from typing import Annotated, TypeAlias
from urllib.parse import quote

import typer
from aegis_protocol.http_api.agents import Agent, DrainRequest, PauseRequest
from pydantic import BaseModel

from aegis_control.commands.agents_commands import Name, show
from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.times import seconds_until

Reason: TypeAlias = Annotated[
    str, typer.Option(help="Shown wherever the agent's state is, and to jobs that wait.")
]


def pause(
    agent: Name,
    reason: Reason = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Give an agent no new jobs; what runs goes on. It holds until `resume-agent`."""
    asking = Asking(url, key_file, state_dir)
    _order(asking, agent, "pause", PauseRequest(reason=reason[:200]), as_json=as_json)


def resume(
    agent: Name,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Take back a pause or a drain."""
    _order(Asking(url, key_file, state_dir), agent, "resume", None, as_json=as_json)


def drain(
    agent: Name,
    reason: Reason = "",
    deadline: Annotated[
        str | None, typer.Option(help="Cancel what still runs then: 90s, 30m, 2h, or a date.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Cancel what runs at once.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Give an agent no new jobs and let what runs finish, or cancel it at a deadline."""
    if force and deadline is not None:
        raise typer.BadParameter("--force is a deadline of nothing: give one of the two")
    wanted = DrainRequest(
        reason=reason[:200],
        deadline_secs=0.0 if force else None if deadline is None else _seconds(deadline),
    )
    _order(Asking(url, key_file, state_dir), agent, "drain", wanted, as_json=as_json)


def reset(
    agent: Name,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Take back every order and lift a quarantine."""
    _order(Asking(url, key_file, state_dir), agent, "reset", None, as_json=as_json)


def _seconds(deadline: str) -> float:
    return float(seconds_until(deadline, option="--deadline"))


def _order(
    asking: Asking, agent: str, order: str, body: BaseModel | None, *, as_json: bool
) -> None:
    found = asking.post(f"/services/agents/{quote(agent, safe='')}/{order}", body, Agent)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show((found,))
