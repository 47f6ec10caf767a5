"""
The decision: job by job in their order, the agents that fit, and the best of them.

Of the agents that fit, one that has the project warm is best, then the one with the smallest share
of its slots taken, then the first by name. A job that has waited for a minute for room that is
never free, because what is smaller takes it, has an agent kept free until it fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Final, TypeAlias

from aegis_protocol.http_api.jobs import Reason

from aegis_control.scheduler.agent_set import AgentSet, members
from aegis_control.scheduler.board_choice import BoardChoice
from aegis_control.scheduler.known import Fleet, KnownFleet
from aegis_control.scheduler.objections import NO_AGENT, Objection, Objections
from aegis_control.scheduler.order import in_turn, waited_s
from aegis_control.scheduler.words import AgentView, Decision, Match, WaitingJob

KEEP_AFTER_S: Final = 60.0
_MAX_CANDIDATES: Final = 8
_MOST_KEPT: Final = 16


def decide(
    waiting: Sequence[WaitingJob],
    agents: Sequence[AgentView],
    load: Mapping[str, int],
    *,
    now_s: float = 0.0,
    known: KnownFleet | None = None,
) -> Decision:
    """
    Match jobs with agents, and say of each other job why it waits.

    load   how many jobs each identity has on agents already
    now_s  unix seconds: how long each job has waited counts from there
    known  of the agents, as of the last decision; it saves time, and changes nothing
    """
    desk = _Desk((known or KnownFleet()).of(agents), load)
    matches: list[Match] = []
    reasons: dict[str, tuple[Reason, ...]] = {}
    for job in in_turn(waiting, load, now_s=now_s):
        found = desk.place(job)
        if isinstance(found, Match):
            matches.append(found)
            continue
        reasons[job.id] = found
        if waited_s(job, now_s) >= KEEP_AFTER_S:
            desk.keep_one_for(job)
    return Decision(tuple(matches), reasons)


_Asked: TypeAlias = tuple[object, ...]
_Shape: TypeAlias = tuple[_Asked, _Asked]
"""What a job asks for that does not change, and what others may take from it meanwhile."""


def _shape(job: WaitingJob) -> _Shape:
    chain = job.toolchain
    capability = (
        job.agent,
        job.target,
        None if chain is None else (chain.kind, chain.version),
        tuple(sorted(job.labels.items())) if job.labels else (),
        job.among,
    )
    boards = tuple((b.id, b.chip, tuple(sorted(b.labels.items()))) for b in job.boards)
    # who asks matters where boards are: one may be leased to them
    room = (job.cpu_cores, job.memory_mb, boards, boards and (job.identity, job.board_limits))
    return capability, room


class _Desk:
    """One decision while it is made."""

    def __init__(self, fleet: Fleet, load: Mapping[str, int]) -> None:
        self._views = views = fleet.views
        self._everybody: AgentSet = (1 << len(views)) - 1
        self._capability = fleet.capability
        self._room = fleet.room
        self._warm = fleet.warm
        self._words = Objections(views)
        self._load: dict[str, int] = defaultdict(int, load)
        self._may_keep = min(_MOST_KEPT, max(1, len(views) // 4))
        self._capables: dict[_Asked, tuple[dict[Objection, AgentSet], AgentSet]] = {}
        self._failed: dict[_Shape, tuple[Reason, ...]] = {}
        """What jobs of this shape were told since something was taken last."""

    @cached_property
    def _boards(self) -> BoardChoice:
        return BoardChoice(self._views)

    def place(self, job: WaitingJob) -> Match | tuple[Reason, ...]:
        """Give the job the best agent that fits, or say what is in the way at each."""
        if not self._views:
            return NO_AGENT
        if self._at_limit(job):
            words = f"the key may have {job.most_jobs} at once, and has {self._load[job.identity]}"
            return (Reason(code="jobs.at_limit", detail=words),)
        shape = _shape(job)
        failed = self._failed.get(shape)
        if failed is not None:
            return failed
        known, capable = self._capable(job, shape)
        fitting = capable & self._room.fitting(job)
        if fitting and job.boards:
            fitting = self._boards.fitting(job, fitting)
        entangled: dict[Objection, AgentSet] = defaultdict(int)
        while fitting:
            best = self._best(job, fitting)
            fitting &= ~(1 << best)
            boards = self._boards.choose(best, job) if job.boards else ()
            if not isinstance(boards, Objection):
                return self._taken(job, best, boards, fitting)
            entangled[boards] |= 1 << best
        against = defaultdict(int, known)
        left = self._without(self._room.objections(job), capable, against)
        if job.boards:
            self._without(self._boards.objections(job, left), left, against)
        for why, agents in entangled.items():
            against[why] |= agents
        self._failed[shape] = reasons = self._words.told(against)
        return reasons

    def keep_one_for(self, job: WaitingJob) -> None:
        """
        Have no later job take the agent where this one will fit when others have ended.

        A quarter of the agents at most is kept, and no more than 16: the rest goes on working.
        """
        if self._may_keep <= 0 or self._at_limit(job):
            return
        _, capable = self._capable(job, _shape(job))
        left = capable & self._room.could_hold(job)
        while left:
            place = self._room.least_loaded(left)
            if self._boards.could_choose(place, job):
                self._room.kept |= 1 << place
                self._may_keep -= 1
                self._failed.clear()
                return
            left &= ~(1 << place)

    def _capable(
        self, job: WaitingJob, shape: _Shape
    ) -> tuple[Mapping[Objection, AgentSet], AgentSet]:
        """What is in the way whatever runs, and the agents without."""
        known = self._capables.get(shape[0])
        if known is None:
            against: dict[Objection, AgentSet] = defaultdict(int)
            left = self._without(self._capability.objections(job), self._everybody, against)
            self._capables[shape[0]] = known = (against, left)
        return known

    def _best(self, job: WaitingJob, agents: AgentSet) -> int:
        warm = 0 if job.project_key is None else self._warm.get(job.project_key, 0) & agents
        return self._room.least_loaded(warm or agents)

    def _taken(
        self, job: WaitingJob, place: int, boards: tuple[str, ...], others: AgentSet
    ) -> Match:
        fitting = (self._views[other].id for other in members(others) if self._fits(other, job))
        candidates = tuple(islice(fitting, _MAX_CANDIDATES))
        self._room.take(place, job)
        if boards:
            self._boards.take(place, boards)
        self._load[job.identity] += 1
        self._failed.clear()
        return Match(job.id, self._views[place].id, boards, candidates)

    def _fits(self, place: int, job: WaitingJob) -> bool:
        """Tell whether an agent where each wish finds a board has one for all of them at once."""
        several = len(job.boards) > 1
        return not several or not isinstance(self._boards.choose(place, job), Objection)

    def _at_limit(self, job: WaitingJob) -> bool:
        return job.most_jobs is not None and self._load[job.identity] >= job.most_jobs

    def _without(
        self,
        objections: Iterable[tuple[Objection, AgentSet]],
        left: AgentSet,
        against: dict[Objection, AgentSet],
    ) -> AgentSet:
        """Return those of `left` that nothing is held against, and note what is."""
        for why, true_of in objections:
            stopped = left & true_of
            if stopped:
                against[why] |= stopped
                left ^= stopped
                if not left:
                    break
        return left
