"""The agents as a whole: what is enrolled, what is linked, what is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aegis_protocol.board import Board
from aegis_protocol.http_api.agents import Agent
from aegis_protocol.http_api.boards import BoardRow
from aegis_protocol.signing import b64
from aegis_protocol.states import AgentState, BoardState, Order
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.link.linked import Linked, state_of
from aegis_control.link.registry import Links
from aegis_control.scheduler import AgentView, Leased
from aegis_control.store import agents, boards, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.boards import Holdings
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE, JobRecord
from aegis_control.store.mirror import Mirror


class IdleViews:
    """What the scheduler sees of each agent as long as it has no job; made anew when it changes."""

    def __init__(self) -> None:
        self._views: dict[str, tuple[tuple[object, ...], AgentView]] = {}

    def of(self, record: AgentRecord, link: Linked | None) -> AgentView:
        told = () if link is None else (link.boards, link.warm, link.paused, link.draining)
        source = (record, link, *told)
        known = self._views.get(record.id)
        if known is not None and known[0] == source:
            return known[1]
        view = _idle(record, link)
        self._views[record.id] = source, view
        return view

    def keep_only(self, records: Mapping[str, AgentRecord]) -> None:
        if len(self._views) > len(records):
            self._views = {k: view for k, view in self._views.items() if k in records}


class Roll:
    """
    The agents, and what of them does not change with their jobs.

    records  by name
    idle     of each what the scheduler would see if it had no job
    places   where in these each agent is
    """

    def __init__(
        self, records: Iterable[AgentRecord], links: Mapping[str, Linked], views: IdleViews
    ) -> None:
        self.records: Final = sorted(records, key=lambda record: (record.name, record.id))
        self.links: Final = links
        self.idle: Final = [views.of(record, links.get(record.id)) for record in self.records]
        self.places: Final = {record.id: place for place, record in enumerate(self.records)}


@dataclass(frozen=True)
class Fleet:
    """One look at everything. held: who has which board."""

    roll: Roll
    live: tuple[JobRecord, ...]
    held: Holdings

    @property
    def records(self) -> Sequence[AgentRecord]:
        """By name."""
        return self.roll.records

    def name_of(self, agent_id: str) -> str:
        return self.roll.records[self.roll.places[agent_id]].name

    @classmethod
    async def look(cls, conn: AsyncConnection, links: Links) -> Fleet:
        return cls(
            roll=Roll(await agents.every(conn), links.all(), IdleViews()),
            live=await jobs.in_states(conn, LIVE),
            held=await boards.holdings(conn),
        )

    def views(self) -> list[AgentView]:
        """What the scheduler sees, by name."""
        taken: dict[str, list[JobRecord]] = defaultdict(list)
        for job in self.live:
            if job.agent_id is not None:
                taken[job.agent_id].append(job)
        identities = {job.id: job.identity for job in self.live}
        held: dict[str, dict[str, str]] = defaultdict(dict)
        for (agent_id, board_id), job_id in self.held.jobs.items():
            held[agent_id][board_id] = identities.get(job_id, "")
        leased: dict[str, dict[str, Leased]] = defaultdict(dict)
        for (agent_id, board_id), lease in self.held.leases.items():
            leased[agent_id][board_id] = Leased(lease.identity, lease.until_s)
        views = list(self.roll.idle)
        for agent_id in taken.keys() | held.keys() | leased.keys():
            place = self.roll.places.get(agent_id)
            if place is not None:
                views[place] = _loaded(
                    views[place],
                    taken.get(agent_id, ()),
                    held.get(agent_id, {}),
                    leased.get(agent_id),
                )
        return views

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
            link = self.roll.links.get(record.id)
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
                    last_seen=record.last_seen
                    if link is None or link.heard_at is None
                    else link.heard_at,
                )
            )
        return tuple(rows)

    def boards(self, identity: str, *, sees_all: bool) -> tuple[BoardRow, ...]:
        """The answer of `GET /boards` to `identity`: another's job is named to operators alone."""
        own = {job.id for job in self.live if job.identity == identity}

        def name(holder: str) -> str:
            return holder if sees_all else shown(holder, identity)

        rows = []
        for view in self.views():
            for board in view.boards:
                holder = self.held.jobs.get((view.id, board.id))
                lease = self.held.leases.get((view.id, board.id))
                rows.append(
                    BoardRow(
                        agent_id=view.id,
                        agent_name=view.name,
                        agent_state=view.state,
                        board=self._with_holder(view.id, board),
                        holder=holder if not holder or holder in own or sees_all else "another",
                        leased_by=None if lease is None else name(lease.identity),
                        leased_until=None if lease is None else lease.until_s,
                    )
                )
        return tuple(rows)

    def _with_holder(self, agent_id: str, board: Board) -> Board:
        """The board's state as control knows it: what a job has is held, what is gone is gone."""
        if board.state is BoardState.GONE:
            return board
        held = (agent_id, board.id) in self.held.jobs or board.state is BoardState.HELD
        return board.model_copy(update={"state": BoardState.HELD if held else BoardState.FREE})


def agent_state(record: AgentRecord, link: Linked | None) -> tuple[AgentState, str]:
    """
    What an operator ordered stands above what the agent says of itself.

    A quarantine is shown whether the agent has a link or not: it is what must be lifted first.
    """
    if record.revoked_at is not None:
        return AgentState.REVOKED, record.revoked_reason
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
            return state_of(link)


class FleetMirror:
    """The fleet from memory, for who looks at it at every request."""

    def __init__(
        self,
        database: Database,
        links: Links,
        agent_records: Mirror[AgentRecord],
        open_jobs: Mirror[JobRecord],
    ) -> None:
        self._database = database
        self._links = links
        self._agents = agent_records
        self._jobs = open_jobs
        self._idle = IdleViews()
        self._roll = Roll((), {}, self._idle)
        self._as_of = (-1, -1)

    async def now(self) -> Fleet:
        async with self._database.read() as conn:
            held = await boards.holdings(conn)
        open_jobs = await self._jobs.now()
        live = tuple(job for job in open_jobs.values() if job.state in LIVE)
        records = await self._agents.now()
        now = (self._agents.version, self._links.version)
        if now != self._as_of:
            self._idle.keep_only(records)
            self._roll = Roll(records.values(), self._links.all(), self._idle)
            self._as_of = now
        return Fleet(self._roll, live, held)


def _idle(record: AgentRecord, link: Linked | None) -> AgentView:
    hello = record.hello
    if hello is None:
        return AgentView(record.id, record.name, AgentState.DISCONNECTED, "was never connected")
    state, reason = agent_state(record, link)
    return AgentView(
        id=record.id,
        name=record.name,
        state=state,
        reason=reason,
        targets=frozenset(hello.targets),
        toolchains=hello.toolchains,
        labels=hello.labels,
        boards=hello.boards if link is None else link.boards,
        slots=hello.slots,
        slots_free=hello.slots,
        cpu_cores=hello.cpu_cores,
        cpu_free=hello.cpu_cores,
        memory_mb=hello.memory_mb,
        memory_free_mb=hello.memory_mb,
        warm=frozenset(hello.warm_projects) if link is None else link.warm,
    )


def _loaded(
    idle: AgentView,
    live: Sequence[JobRecord],
    held: Mapping[str, str],
    leased: Mapping[str, Leased] | None,
) -> AgentView:
    return replace(
        idle,
        held=frozenset(held),
        holders=held,
        leased=leased or {},
        slots_free=idle.slots_free - len(live),
        cpu_free=idle.cpu_free - sum(job.request.cpu_cores for job in live),
        memory_free_mb=idle.memory_free_mb - sum(job.request.memory_mb for job in live),
    )


def shown(identity: str, to: str) -> str:
    """Who it is, as `to` may know it."""
    return identity if identity == to else "another"
