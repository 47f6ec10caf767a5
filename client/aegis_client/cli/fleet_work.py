"""What agents, agents trust, agents forget and boards do."""

from __future__ import annotations

import time

from aegis_protocol.failures.http import AgentNotFound
from aegis_protocol.http_api.agents import Agent
from aegis_protocol.http_api.boards import BoardRow
from aegis_protocol.model import Labels

from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.client import Client
from aegis_client.exit_codes import ExitCode
from aegis_client.trust import AgentIdentity, KnownAgents


def agents(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        found = (await client.control.agents()).agents
        out.result(
            {
                "agents": [
                    {**agent.model_dump(mode="json"), "trust": _trust(client.known, agent)}
                    for agent in found
                ]
            }
        )
        out.table(
            ["name", "id", "state", "trust", "version", "targets", "slots", "boards", "seen"],
            [
                [
                    agent.name,
                    agent.id,
                    f"{agent.state}: {agent.reason}" if agent.reason else str(agent.state),
                    _trust(client.known, agent),
                    agent.version,
                    " ".join(agent.targets),
                    f"{agent.slots_free}/{agent.slots}",
                    str(len(agent.boards)),
                    _ago(agent.last_seen),
                ]
                for agent in found
            ],
        )

    return with_client(out, work)


def trust(name: str, key: str | None, *, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        found = [a for a in (await client.control.agents()).agents if name in (a.name, a.id)]
        if not found:
            raise AgentNotFound(f"there is no agent {name!r}")
        agent = AgentIdentity.checked(found[0].id, found[0].name, found[0].key)
        pin = client.known.trust(agent, key)
        out.result(pin.model_dump(mode="json"))
        out.line(f"agent {pin.name} is trusted as {pin.agent_id}")
        if key is None:
            out.note(f"compare its key on the machine: {pin.key}")

    return with_client(out, work)


def forget(name: str, *, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        was_there = client.known.forget(name)
        out.result({"agent": name, "forgotten": was_there})
        out.line(f"{name} is forgotten" if was_there else f"{name} was not among the known agents")

    return with_client(out, work)


def boards(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        found = await client.control.boards()
        out.result(found.model_dump(mode="json"))
        out.table(
            ["id", "chip", "state", "agent", "labels", "description"],
            [
                [
                    row.board.id,
                    row.board.chip or "?",
                    _held(row),
                    f"{row.agent_name} ({row.agent_state})",
                    _labels(row.board.labels),
                    row.board.description,
                ]
                for row in found.boards
            ],
        )

    return with_client(out, work)


def _trust(known: KnownAgents, agent: Agent) -> str:
    pin = known.pin(agent.name)
    if pin is None:
        return "new"
    return "pinned" if (pin.key, pin.agent_id) == (agent.key, agent.id) else "CHANGED"


def _held(row: BoardRow) -> str:
    """`held by another, leased by you until 12:31`: by whom, where it is not free."""
    words = [str(row.board.state) + (f" by {row.holder}" if row.holder else "")]
    if row.leased_until is not None:
        until = time.strftime("%H:%M", time.localtime(row.leased_until))
        words.append(f"leased by {row.leased_by} until {until}")
    return ", ".join(words)


def _labels(labels: Labels) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0, time.time() - moment)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
