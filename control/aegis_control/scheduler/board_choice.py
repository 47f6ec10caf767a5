"""Which agents have the boards that a job wishes for, and which boards it gets there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

from aegis_protocol.board import Board, BoardWish
from aegis_protocol.states import BoardState

from aegis_control.scheduler.agent_set import AgentSet, by_key, members
from aegis_control.scheduler.objections import Objection
from aegis_control.scheduler.words import AgentView, WaitingJob

_Key = tuple[str | None, str | None, tuple[tuple[str, str], ...], tuple[str, ...] | None]


@dataclass
class _Found:
    """What one wish finds at the agents whose boards nobody leases."""

    wish: BoardWish
    limits: tuple[str, ...] | None
    named: str | None = None
    free: AgentSet = 0
    objections: dict[Objection, AgentSet] = field(default_factory=lambda: defaultdict(int))


class BoardChoice:
    """views: sorted by name."""

    def __init__(self, views: Sequence[AgentView]) -> None:
        self._views = views
        self._every: AgentSet = (1 << len(views)) - 1
        self._held = [set(view.held) for view in views]
        self._leasing: AgentSet = 0
        for place, view in enumerate(views):
            if view.leased:
                self._leasing |= 1 << place
        self._found: dict[_Key, _Found] = {}

    def fitting(self, job: WaitingJob, agents: AgentSet) -> AgentSet:
        """Those of `agents` where each wish by itself finds a board."""
        for wish in job.boards:
            agents &= self._wish(wish, job.board_limits).free | self._leasing
            for place in members(agents & self._leasing):
                if isinstance(self._options(place, wish, job, self._held[place]), Objection):
                    agents &= ~(1 << place)
        return agents

    def objections(self, job: WaitingJob, agents: AgentSet) -> Iterator[tuple[Objection, AgentSet]]:
        """As `Capability.objections`, of `agents` alone: told of each wish by itself."""
        for wish in job.boards:
            found = self._wish(wish, job.board_limits)
            for why, there in found.objections.items():
                if there:
                    yield why, there
            for place in members(self._leasing & agents):
                options = self._options(place, wish, job, self._held[place])
                if isinstance(options, Objection):
                    yield options, 1 << place

    def choose(self, place: int, job: WaitingJob) -> tuple[str, ...] | Objection:
        """The boards that the job gets of the agent at `place`, in the order of its wishes."""
        return self._chosen(place, job, self._held[place])

    def could_choose(self, place: int, job: WaitingJob) -> bool:
        """Tell whether the job would get boards there if no other job had any."""
        return not isinstance(self._chosen(place, job, frozenset()), Objection)

    def _chosen(self, place: int, job: WaitingJob, held: Set[str]) -> tuple[str, ...] | Objection:
        options: list[list[str]] = []
        for wish in job.boards:
            found = self._options(place, wish, job, held)
            if isinstance(found, Objection):
                return found
            options.append(found)
        taken: dict[str, int] = {}
        for index in range(len(options)):
            if not _augment(index, options, taken, set()):
                return Objection("board.held", f"fewer than {len(options)} boards are free")
        by_wish = {index: board_id for board_id, index in taken.items()}
        return tuple(by_wish[index] for index in range(len(options)))

    def take(self, place: int, boards: Sequence[str]) -> None:
        """These boards of the agent at `place` are a job's now."""
        if not boards:
            return
        self._held[place].update(boards)
        for found in self._found.values():
            for why, there in found.objections.items():
                found.objections[why] = there & ~(1 << place)
            found.free &= ~(1 << place)
            self._look(place, found)

    def _wish(self, wish: BoardWish, limits: tuple[str, ...] | None) -> _Found:
        key = (wish.id, wish.chip, tuple(sorted(wish.labels.items())), limits)
        known = self._found.get(key)
        if known is not None:
            return known
        found = _Found(wish, limits)
        likely = self._every
        if wish.id is not None:
            likely &= self._with_id.get(wish.id, 0)
        if wish.chip is not None:
            likely &= self._with_chip.get(wish.chip, 0)
        missing = Objection("board.missing", f"no board {_named(wish)}")
        found.objections[missing] = self._every & ~likely & ~self._leasing
        for place in members(likely):
            self._look(place, found)
        self._found[key] = found
        return found

    @cached_property
    def _with_id(self) -> Mapping[str, AgentSet]:
        return by_key(self._views, lambda view: {board.id for board in view.boards})

    @cached_property
    def _with_chip(self) -> Mapping[str | None, AgentSet]:
        return by_key(self._views, lambda view: {board.chip for board in view.boards})

    def _look(self, place: int, found: _Found) -> None:
        """Note what is in the way of this wish there; who asks matters where boards are leased."""
        if self._leasing >> place & 1:
            return
        wish, limits, held = found.wish, found.limits, self._held[place]
        nearest = 0
        for board in self._views[place].boards:
            if not fits(wish, board):
                continue
            if limits is not None and board.id not in limits:
                nearest = max(nearest, 1)
            elif board.state is BoardState.GONE:
                nearest = max(nearest, 2)
            elif board.id in held:
                nearest = max(nearest, 3)
            else:
                found.free |= 1 << place
                return
        if found.named is None:
            found.named = _named(wish)
        found.objections[_in_the_way(nearest, found.named)] |= 1 << place

    def _options(
        self, place: int, wish: BoardWish, job: WaitingJob, held: Set[str]
    ) -> list[str] | Objection:
        """The boards there that this wish may have, or the first thing that is in its way."""
        view, limits = self._views[place], job.board_limits
        fitting = [board for board in view.boards if fits(wish, board)]
        allowed = [board for board in fitting if limits is None or board.id in limits]
        there = [board for board in allowed if board.state is not BoardState.GONE]
        leased = {
            board_id: lease.until_s
            for board_id, lease in view.leased.items()
            if lease.identity != job.identity
        }
        mine = [board for board in there if board.id not in leased]
        if there and not mine:
            until = time.gmtime(min(leased[board.id] for board in there))
            words = f"board {_named(wish)} is leased until {time.strftime('%H:%M', until)} UTC"
            return Objection("board.leased", words)
        free = [board.id for board in mine if board.id not in held]
        if free:
            return free
        nearest = sum(bool(some) for some in (fitting, allowed, there))
        return _in_the_way(nearest, _named(wish))


def _in_the_way(nearest: int, named: str) -> Objection:
    """nearest: 0: no board fits; 1: none that does is allowed; 2: plugged in; 3: free."""
    match nearest:
        case 0:
            return Objection("board.missing", f"no board {named}")
        case 1:
            return Objection("board.not_allowed", f"the key may use no board {named}")
        case 2:
            return Objection("board.gone", f"board {named} is unplugged")
        case _:
            return Objection("board.held", f"board {named} is in use")


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


def fits(wish: BoardWish, board: Board) -> bool:
    if wish.id is not None and wish.id != board.id:
        return False
    if wish.chip is not None and wish.chip != board.chip:
        return False
    labels = wish.labels
    return not labels or all(board.labels.get(key) == value for key, value in labels.items())


def _named(wish: BoardWish) -> str:
    words = [wish.id or "", f"with {wish.chip}" if wish.chip else ""]
    words += [f"{key}={value}" for key, value in sorted(wish.labels.items())]
    return " ".join(word for word in words if word) or "at all"
