"""The agents as a whole: what is enrolled, what is linked, what is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from aegis_protocol.board import Board
from aegis_protocol.http_api import Agent, BoardRow
from aegis_protocol.signing import b64
from aegis_protocol.states import AgentState, BoardState, Order
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.link.link import Link
from aegis_control.link.registry import Links
from aegis_control.scheduler import AgentView
from aegis_control.store import agents, boards, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.jobs import LIVE, JobRecord


@dataclass(frozen=True)
class Fleet:
    """One look at everything. holders: (agent id, board id) to job id."""

    records: tuple[AgentRecord, ...]
    links: Mapping[str, Link]
    live: tuple[JobRecord, ...]
    holders: Mapping[tuple[str, str], str]

    @classmethod
    async def look(cls, conn: AsyncConnection, links: Links) -> Fleet:
        return cls(
            records=await agents.every(conn),
            links=links.all(),
            live=await jobs.in_states(conn, LIVE),
            holders=await boards.holders(conn),
        )

    def views(self) -> list[AgentView]:
        """What the scheduler sees."""
        taken: dict[str, list[JobRecord]] = defaultdict(list)
        for job in self.live:
            if job.agent_id is not None:
                taken[job.agent_id].append(job)
        return [self._view(record, taken[record.id]) for record in self.records]

    def load(self) -> Mapping[str, int]:
        """How many jobs each identity has on agents."""
        count: dict[str, int] = defaultdict(int)
        for job in self.live:
            count[job.identity] += 1
        return count

    def agents(self) -> tuple[Agent, ...]:
        """The answer of `GET /agents`."""
        rows = []
        for record, view in zip(self.records, self.views(), strict=True):
            link = self.links.get(record.id)
            rows.append(
                Agent(
                    id=record.id,
                    name=record.name,
                    key=b64(record.public_key),
                    state=view.state,
                    reason=view.reason,
                    version="" if record.hello is None else record.hello.version,
                    targets=tuple(sorted(view.targets)),
                    toolchains=view.toolchains,
                    slots=view.slots,
                    slots_free=max(0, view.slots_free),
                    cpu_cores=view.cpu_cores,
                    memory_mb=view.memory_mb,
                    labels=dict(view.labels),
                    boards=tuple(self._with_holder(record.id, board) for board in view.boards),
                    last_seen=record.last_seen if link is None else link.heard_at,
                )
            )
        return tuple(rows)

    def boards(self, identity: str) -> tuple[BoardRow, ...]:
        """The answer of `GET /boards` to `identity`: another's job is not named."""
        own = {job.id for job in self.live if job.identity == identity}
        rows = []
        for view in self.views():
            for board in view.boards:
                holder = self.holders.get((view.id, board.id))
                rows.append(
                    BoardRow(
                        agent_id=view.id,
                        agent_name=view.name,
                        agent_state=view.state,
                        board=self._with_holder(view.id, board),
                        holder=holder if holder is None or holder in own else "another",
                    )
                )
        return tuple(rows)

    def _view(self, record: AgentRecord, live: list[JobRecord]) -> AgentView:
        link, hello = self.links.get(record.id), record.hello
        if hello is None:
            return AgentView(
                record.id,
                record.name,
                AgentState.DISCONNECTED,
                "was never connected",
                slots_free=1 - len(live),
            )
        state, reason = _state(record, link)
        return AgentView(
            id=record.id,
            name=record.name,
            state=state,
            reason=reason,
            targets=frozenset(hello.targets),
            toolchains=hello.toolchains,
            labels=hello.labels,
            boards=hello.boards if link is None else link.boards,
            held=frozenset(b for agent_id, b in self.holders if agent_id == record.id),
            slots=hello.slots,
            slots_free=hello.slots - len(live),
            cpu_cores=hello.cpu_cores,
            cpu_free=hello.cpu_cores - sum(job.request.cpu_cores for job in live),
            memory_mb=hello.memory_mb,
            memory_free_mb=hello.memory_mb - sum(job.request.memory_mb for job in live),
            warm=frozenset(hello.warm_projects) if link is None else link.warm,
        )

    def _with_holder(self, agent_id: str, board: Board) -> Board:
        """The board's state as control knows it: what a job has is held, what is gone is gone."""
        if board.state is BoardState.GONE:
            return board
        held = (agent_id, board.id) in self.holders or board.state is BoardState.HELD
        return board.model_copy(update={"state": BoardState.HELD if held else BoardState.FREE})


def _state(record: AgentRecord, link: Link | None) -> tuple[AgentState, str]:
    """
    What an operator ordered stands above what the agent says of itself.

    A quarantine is shown whether the agent has a link or not: it is what must be lifted first.
    """
    if record.ordered is Order.QUARANTINED:
        return AgentState.QUARANTINED, record.ordered_reason
    if link is None:
        return AgentState.DISCONNECTED, record.ordered_reason
    match record.ordered:
        case Order.PAUSED:
            return AgentState.PAUSED, record.ordered_reason
        case Order.DRAINING:
            return AgentState.DRAINING, record.ordered_reason
        case _:
            return link.state()
