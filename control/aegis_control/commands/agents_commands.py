"""`list-agents`, and what an operator does with an agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias
from urllib.parse import quote

import typer
from aegis_protocol.http_api.agents import Agent, AgentList, RevokeAgentRequest
from aegis_protocol.states import BoardState

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.outcome import done
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import ago

agents = typer.Typer(help="Agents.", no_args_is_help=True)

Name: TypeAlias = Annotated[str, typer.Argument(metavar="AGENT", help="Its name or id.")]


@agents.command("list", epilog="Example: aegis-control agents list")
def list_agents(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show the agents: state, version, targets, toolchains, slots, boards, last seen."""
    found = Asking(url, key_file, state_dir).get("/agents", AgentList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.agents:
        typer.echo("No agent is enrolled. `aegis-control enroll-token create` makes a token.")
        return
    show(found.agents)


def show(found: Sequence[Agent]) -> None:
    """Print agents as a table."""
    print_table(_COLUMNS, [_row(agent) for agent in found], whole=("ID", "SLOTS", "LAST SEEN"))


@agents.command("remove", epilog="Example: aegis-control agents remove lab-1")
def remove(
    agent: Name,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Forget an agent; its jobs have failed then."""
    Asking(url, key_file, state_dir).delete(f"/services/agents/{quote(agent, safe='')}")
    done({"removed": agent}, f"removed {agent}", as_json=as_json)


@agents.command("revoke", epilog='Example: aegis-control agents revoke lab-1 --reason "stolen"')
def revoke(
    agent: Name,
    reason: Annotated[str, typer.Option(help="Shown in the list, and to the agent.")] = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Take an agent's key back: its jobs have failed, and it may neither link up nor enrol."""
    path = f"/services/agents/{quote(agent, safe='')}/revoke"
    Asking(url, key_file, state_dir).tell(path, RevokeAgentRequest(reason=reason[:200]))
    words = f"revoked {agent}; `agents remove` lets it enrol again"
    done({"revoked": agent}, words, as_json=as_json)


_COLUMNS: Final = (
    *("ID", "NAME", "STATE", "VERSION", "TARGETS", "TOOLCHAINS", "SLOTS", "BOARDS", "LAST SEEN"),
)


def _row(agent: Agent) -> tuple[str, ...]:
    return (
        agent.id,
        agent.name,
        f"{agent.state}: {agent.reason}" if agent.reason else str(agent.state),
        agent.version,
        " ".join(_targets(agent)),
        ", ".join(f"{chain.kind} {chain.version}" for chain in agent.toolchains),
        f"{agent.slots_free}/{agent.slots} free",
        ", ".join(_board(agent)),
        ago(agent.last_seen),
    )


def _targets(agent: Agent) -> list[str]:
    return sorted({*agent.targets, *(t for chain in agent.toolchains for t in chain.targets)})


def _board(agent: Agent) -> list[str]:
    return [
        f"{board.id} ({board.chip or 'unknown chip'}"
        + ("" if board.state is BoardState.FREE else f", {board.state}")
        + ")"
        for board in agent.boards
    ]
