"""
Who gets what: from waiting jobs and agents to matches, and for every other job why it waits.

Pure: nothing here waits, reads a clock or writes. Identities take turns; within one the oldest job
is first. Of the agents that fit, the one that has the project warm is best, then the one with the
smallest share of its slots taken, then the first by name.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aegis_protocol.board import Board, BoardWish
from aegis_protocol.http_api import Reason, Toolchain, ToolchainWish
from aegis_protocol.states import AgentState, BoardState
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class WaitingJob:
    """
    agent  an id or a name
    among  what key and policy leave: of each, the agent is one by id, name or `key=value`
    """

    id: str
    identity: str
    created_at: float
    target: str | None = None
    toolchain: ToolchainWish | None = None
    agent: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    boards: tuple[BoardWish, ...] = ()
    cpu_cores: float = 1.0
    memory_mb: int = 1024
    project_key: str | None = None
    among: tuple[tuple[str, ...], ...] = ()
    board_limits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AgentView:
    """
    What the scheduler sees of an agent. `held`: its boards that jobs have.

    slots_free, cpu_free, memory_free_mb  what is left beside the jobs that it has
    """

    id: str
    name: str
    state: AgentState
    reason: str = ""
    targets: frozenset[str] = frozenset()
    toolchains: tuple[Toolchain, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    boards: tuple[Board, ...] = ()
    held: frozenset[str] = frozenset()
    slots: int = 1
    slots_free: int = 1
    cpu_cores: float = 1.0
    cpu_free: float = 1.0
    memory_mb: int = 1024
    memory_free_mb: int = 1024
    warm: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """candidates: the other agents that could have taken the job."""

    job_id: str
    agent_id: str
    boards: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    matches: tuple[Match, ...]
    waiting: Mapping[str, tuple[Reason, ...]]


def decide(
    waiting: Sequence[WaitingJob], agents: Sequence[AgentView], load: Mapping[str, int]
) -> Decision:
    """
    Match jobs with agents.

    load  how many jobs each identity has on agents already: the one with the fewest goes first
    """
    room = {agent.id: _Room(agent) for agent in sorted(agents, key=lambda a: (a.name, a.id))}
    matches: list[Match] = []
    reasons: dict[str, tuple[Reason, ...]] = {}
    for job in in_turn(waiting, load):
        fits: list[tuple[_Room, tuple[str, ...]]] = []
        objections: list[tuple[str, str, str]] = []
        for agent in room.values():
            found = agent.weigh(job)
            if isinstance(found, _Objection):
                objections.append((found.code, found.detail, agent.view.name))
            else:
                fits.append((agent, found))
        if not fits:
            reasons[job.id] = _grouped(objections)
            continue
        best, boards = min(fits, key=lambda fit: fit[0].rank(job))
        others = tuple(agent.view.id for agent, _ in fits if agent is not best)
        best.take(job, boards)
        matches.append(Match(job.id, best.view.id, boards, others))
    return Decision(tuple(matches), reasons)


def in_turn(waiting: Iterable[WaitingJob], load: Mapping[str, int]) -> list[WaitingJob]:
    """Return the jobs in the order in which they are served: one of each identity per round."""
    queues: dict[str, deque[WaitingJob]] = defaultdict(deque)
    for job in sorted(waiting, key=lambda job: (job.created_at, job.id)):
        queues[job.identity].append(job)
    rounds = [
        (load.get(identity, 0) + turn, job.created_at, job.id, job)
        for identity, queue in queues.items()
        for turn, job in enumerate(queue)
    ]
    return [job for *_, job in sorted(rounds, key=lambda entry: entry[:3])]


def satisfies(version: str, wanted: str) -> bool:
    """Tell whether `version` is within the PEP 440 specifier `wanted` (empty: any)."""
    if not wanted:
        return True
    try:
        return Version(version) in SpecifierSet(wanted, prereleases=True)
    except (InvalidVersion, InvalidSpecifier):
        return False


@dataclass(frozen=True)
class _Objection:
    code: str
    detail: str


class _Room:
    """What an agent has left while one decision is made."""

    def __init__(self, view: AgentView) -> None:
        self.view = view
        self._slots = view.slots_free
        self._cpu = view.cpu_free
        self._memory_mb = view.memory_free_mb
        self._held = set(view.held)

    def weigh(self, job: WaitingJob) -> tuple[str, ...] | _Objection:
        """Return the boards that the job would get here, or the first thing that is in its way."""
        return (
            self._wrong_agent(job)
            or self._incapable(job)
            or self._unusable()
            or self._full(job)
            or self._boards(job)
        )

    def rank(self, job: WaitingJob) -> tuple[bool, float, str]:
        cold = job.project_key is None or job.project_key not in self.view.warm
        taken = 1 - self._slots / self.view.slots if self.view.slots else 1.0
        return cold, taken, self.view.name

    def take(self, job: WaitingJob, boards: Iterable[str]) -> None:
        self._slots -= 1
        self._cpu -= job.cpu_cores
        self._memory_mb -= job.memory_mb
        self._held.update(boards)

    def _wrong_agent(self, job: WaitingJob) -> _Objection | None:
        if job.agent is not None and job.agent not in (self.view.id, self.view.name):
            return _Objection("agent.not_asked", f"the job asks for the agent {job.agent}")
        for key, value in sorted(job.labels.items()):
            if self.view.labels.get(key) != value:
                return _Objection("labels.differ", f"the job asks for the label {key}={value}")
        own = {f"{key}={value}" for key, value in self.view.labels.items()}
        own |= {self.view.id, self.view.name}
        for words in job.among:
            if own.isdisjoint(words):
                left = ", ".join(words) or "none"
                return _Objection("agent.not_allowed", f"key or policy leave {left}")
        return None

    def _incapable(self, job: WaitingJob) -> _Objection | None:
        view = self.view
        every = view.targets.union(*(chain.targets for chain in view.toolchains))
        if job.target is not None and job.target not in every:
            return _Objection("target.missing", f"no toolchain for {job.target}")
        if job.toolchain is None:
            return None
        wish = job.toolchain
        named = f"{wish.kind} {wish.version}".strip()
        kind = [chain for chain in view.toolchains if chain.kind == wish.kind]
        if not kind:
            return _Objection("toolchain.missing", f"no {wish.kind}")
        fitting = [chain for chain in kind if satisfies(chain.version, wish.version)]
        if not fitting:
            has = ", ".join(sorted(chain.version for chain in kind))
            return _Objection("toolchain.version", f"{named} is asked for, there is {has}")
        if job.target is not None and not any(job.target in c.targets for c in fitting):
            return _Objection("target.missing", f"{named} has no {job.target} there")
        return None

    def _unusable(self) -> _Objection | None:
        match self.view.state:
            case AgentState.ONLINE:
                return None
            case AgentState.DISCONNECTED:
                return _Objection("agent.disconnected", "has no link to control")
            case AgentState.PAUSED:
                return _Objection("agent.paused", self.view.reason or "paused")
            case AgentState.DRAINING:
                return _Objection("agent.draining", self.view.reason or "takes no new jobs")
            case AgentState.QUARANTINED:
                return _Objection("agent.quarantined", self.view.reason or "quarantined")
            case AgentState.REVOKED:
                return _Objection("agent.revoked", self.view.reason or "revoked")

    def _full(self, job: WaitingJob) -> _Objection | None:
        view = self.view
        if self._slots < 1:
            return _Objection("slots.full", f"all slots taken ({view.slots})")
        if job.cpu_cores > self._cpu:
            return _Objection(
                "cpu.short", f"{job.cpu_cores:g} cores asked, {max(self._cpu, 0):g} free"
            )
        if job.memory_mb > self._memory_mb:
            return _Objection(
                "memory.short", f"{job.memory_mb} MB asked, {max(self._memory_mb, 0)} free"
            )
        return None

    def _boards(self, job: WaitingJob) -> tuple[str, ...] | _Objection:
        """Give each wish a board of its own; a wish moves to another board to make room."""
        options: list[list[str]] = []
        for wish in job.boards:
            fitting = [board for board in self.view.boards if _fits(wish, board)]
            if not fitting:
                return _Objection("board.missing", f"no board {_named(wish)}")
            allowed = [
                board
                for board in fitting
                if job.board_limits is None or board.id in job.board_limits
            ]
            if not allowed:
                return _Objection("board.not_allowed", f"the key may use no board {_named(wish)}")
            there = [board for board in allowed if board.state is not BoardState.GONE]
            if not there:
                return _Objection("board.gone", f"board {_named(wish)} is unplugged")
            free = [board.id for board in there if board.id not in self._held]
            if not free:
                return _Objection("board.held", f"board {_named(wish)} is in use")
            options.append(free)
        taken: dict[str, int] = {}
        for index in range(len(options)):
            if not _augment(index, options, taken, set()):
                return _Objection("board.held", f"fewer than {len(options)} boards are free")
        by_wish = {index: board_id for board_id, index in taken.items()}
        return tuple(by_wish[index] for index in range(len(options)))


def _augment(
    index: int, options: Sequence[Sequence[str]], taken: dict[str, int], tried: set[str]
) -> bool:
    """One step of bipartite matching (Kuhn): find a board for wish `index`, moving others."""
    for board_id in options[index]:
        if board_id in tried:
            continue
        tried.add(board_id)
        if board_id not in taken or _augment(taken[board_id], options, taken, tried):
            taken[board_id] = index
            return True
    return False


def _fits(wish: BoardWish, board: Board) -> bool:
    return (
        (wish.id is None or wish.id == board.id)
        and (wish.chip is None or wish.chip == board.chip)
        and all(board.labels.get(key) == value for key, value in wish.labels.items())
    )


def _named(wish: BoardWish) -> str:
    words = [wish.id or "", f"with {wish.chip}" if wish.chip else ""]
    words += [f"{key}={value}" for key, value in sorted(wish.labels.items())]
    return " ".join(word for word in words if word) or "at all"


def _grouped(objections: Sequence[tuple[str, str, str]]) -> tuple[Reason, ...]:
    """One reason per code and detail, with the agents that it is true of."""
    if not objections:
        return (Reason(code="agent.none", detail="no agent is enrolled"),)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for code, detail, agent in objections:
        groups[code, detail].append(agent)
    return tuple(
        Reason(code=code, detail=detail, agents=tuple(sorted(names)))
        for (code, detail), names in sorted(groups.items())
    )
