"""`list-agents`, and what an operator does with an agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

import typer
from aegis_protocol.http_api import Agent, AgentList, RevokeAgentRequest
from aegis_protocol.states import BoardState
from rich.console import Console
from rich.table import Table

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.times import ago

agents = typer.Typer(help="Agents.", no_args_is_help=True)


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
    console = Console()
    if console.width < _WIDE and not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(_table(found))


@agents.command("remove", epilog="Example: aegis-control agents remove lab-1")
def remove(agent: str, url: Url = None, key_file: KeyFile = None, state_dir: State = None) -> None:
    """Forget an agent, by id or name; its jobs have failed then."""
    Asking(url, key_file, state_dir).delete(f"/services/agents/{quote(agent, safe='')}")
    typer.echo(f"removed {agent}")


@agents.command("revoke", epilog='Example: aegis-control agents revoke lab-1 --reason "stolen"')
def revoke(
    agent: Annotated[str, typer.Argument(help="Its name or id.")],
    reason: Annotated[str, typer.Option(help="Shown in the list, and to the agent.")] = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
) -> None:
    """Take an agent's key back: its jobs have failed, and it may neither link up nor enrol."""
    path = f"/services/agents/{quote(agent, safe='')}/revoke"
    Asking(url, key_file, state_dir).tell(path, RevokeAgentRequest(reason=reason[:200]))
    typer.echo(f"revoked {agent}; `agents remove` lets it enrol again")


_WIDE = 180


def _table(found: Sequence[Agent]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "ID",
        "NAME",
        "STATE",
        "VERSION",
        "TARGETS",
        "TOOLCHAINS",
        "SLOTS",
        "BOARDS",
        "LAST SEEN",
    ):
        table.add_column(name, overflow="fold", no_wrap=name in ("ID", "SLOTS", "LAST SEEN"))
    for agent in found:
        table.add_row(
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
    return table


def _targets(agent: Agent) -> list[str]:
    return sorted({*agent.targets, *(t for chain in agent.toolchains for t in chain.targets)})


def _board(agent: Agent) -> list[str]:
    return [
        f"{board.id} ({board.chip or 'unknown chip'}"
        + ("" if board.state is BoardState.FREE else f", {board.state}")
        + ")"
        for board in agent.boards
    ]
