"""
Tells on `GET /events` how agents and boards are, as the store has them in this transaction.

Whoever changes one calls this in the transaction of the change, wherever the agent's link is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from aegis_protocol.board import Board
from aegis_protocol.fleet_events import AgentOnline
from aegis_protocol.states import BoardState
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control import announcements
from aegis_control.fleet import agent_state
from aegis_control.link.linked import OtherLink
from aegis_control.store import agent_links, agents, boards
from aegis_control.store.announcing import announce


async def tell_agents(conn: AsyncConnection, agent_ids: Iterable[str], *, now_s: float) -> None:
    """Tell how each of these agents is."""
    ids = list(agent_ids)
    if not ids:
        return
    links = await _links(conn, ids)
    records = await agents.some(conn, ids)
    for agent_id in ids:
        record, link = records.get(agent_id), links.get(agent_id)
        if record is None or link is None:
            name = agent_id if record is None else record.name
            await announce(conn, announcements.agent_offline(agent_id, name), now_s=now_s)
            continue
        state, reason = agent_state(record, link)
        hello = record.hello
        event = AgentOnline(
            agent_id=agent_id,
            agent_name=record.name,
            state=state,
            reason=reason,
            targets=() if hello is None else hello.targets,
            labels={} if hello is None else hello.labels,
            slots=0 if hello is None else hello.slots,
        )
        toolchains = () if hello is None else hello.toolchains
        await announce(conn, announcements.agent_online(event, toolchains), now_s=now_s)


async def tell_boards(
    conn: AsyncConnection,
    agent_id: str,
    board_ids: Collection[str] | None = None,
    *,
    now_s: float,
) -> None:
    """Tell how these boards of an agent are (None: all that it has); one it lacks is gone."""
    link = (await _links(conn, [agent_id])).get(agent_id)
    there = {board.id: board for board in (() if link is None else link.boards)}
    holdings = await boards.holdings(conn)
    for board_id in sorted(there if board_ids is None else board_ids):
        known = there.get(board_id, Board(id=board_id, state=BoardState.GONE))
        if (agent_id, board_id) in holdings.jobs and known.state is BoardState.FREE:
            known = known.model_copy(update={"state": BoardState.HELD})
        lease = holdings.leases.get((agent_id, board_id))
        until_s = None if lease is None else lease.until_s
        news = announcements.board_changed(agent_id, known, until_s)
        await announce(conn, news, now_s=now_s)


def different(before: Sequence[Board], after: Sequence[Board]) -> set[str]:
    """The ids of the boards that came, went, or are not as they were."""
    old, new = ({board.id: board for board in some} for some in (before, after))
    return {board_id for board_id in {*old, *new} if old.get(board_id) != new.get(board_id)}


async def _links(conn: AsyncConnection, agent_ids: Collection[str]) -> dict[str, OtherLink]:
    """The links that live, wherever they are."""
    found = await agent_links.look(conn, agent_ids)
    return {
        agent_id: OtherLink.read(agent_id, record.replica_id, record.epoch, record.facts)
        for agent_id, record in found.items()
        if record.ended_at is None
    }
