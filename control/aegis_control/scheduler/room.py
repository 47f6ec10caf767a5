"""What agents have left while one decision is made: slots, cores, memory; how loaded each is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Final

from aegis_control.scheduler.agent_set import AgentSet, by_key, first, of
from aegis_control.scheduler.objections import Objection
from aegis_control.scheduler.words import AgentView, WaitingJob

_MOST_AMOUNTS: Final = 100
"""Clients make them up: so many answers are kept at most."""


class Room:
    """views: sorted by name."""

    def __init__(self, views: Sequence[AgentView]) -> None:
        self._views = views
        self._slots = [view.slots_free for view in views]
        self._cpu = _Amounts([view.cpu_free for view in views])
        self._mb = _Amounts([view.memory_free_mb for view in views])
        self._with_slot = of([place for place, free in enumerate(self._slots) if free > 0])
        self._by_share: dict[float, AgentSet] = defaultdict(int)
        self._by_share.update(by_key(views, lambda view: (_share(view, view.slots_free),)))
        self._totals = _Totals(views)
        self.kept: AgentSet = 0
        """Those that are kept for a job that has waited long."""

    @property
    def is_worn(self) -> bool:
        """Whether it knows more amounts than can have come from few programs."""
        return max(self._cpu.known, self._mb.known, self._totals.known) > _MOST_AMOUNTS

    def copied(self, views: Sequence[AgentView]) -> Room:
        """The same room, to take from."""
        room = copy(self)
        room._views = views
        room._slots = self._slots.copy()
        room._cpu, room._mb = self._cpu.copied(), self._mb.copied()
        room._by_share = self._by_share.copy()
        return room

    def become(self, place: int, view: AgentView) -> None:
        """The agent at `place` has other amounts left; its totals are the same."""
        self._set_slots(place, view, view.slots_free)
        self._cpu.set(place, view.cpu_free)
        self._mb.set(place, view.memory_free_mb)

    def objections(self, job: WaitingJob) -> Iterator[tuple[Objection, AgentSet]]:
        """As `Capability.objections`."""
        if self.kept:
            yield Objection("agent.kept", "kept free for a job that has waited longer"), self.kept
        for slots, agents in self._totals.by_slots.items():
            yield Objection("slots.full", f"all slots taken ({slots})"), agents & ~self._with_slot
        cpu, memory = f"{job.cpu_cores:g} cores asked", f"{job.memory_mb} MB asked"
        yield (
            Objection("cpu.short", f"{cpu}, more than it has"),
            ~self._totals.cpu.at_least(job.cpu_cores),
        )
        yield (
            Objection("cpu.short", f"{cpu}, not so many are free"),
            ~self._cpu.at_least(job.cpu_cores),
        )
        yield (
            Objection("memory.short", f"{memory}, more than it has"),
            ~self._totals.mb.at_least(job.memory_mb),
        )
        yield (
            Objection("memory.short", f"{memory}, not so much is free"),
            ~self._mb.at_least(job.memory_mb),
        )

    def fitting(self, job: WaitingJob) -> AgentSet:
        """The agents that nothing is held against."""
        return (
            self._with_slot
            & self._cpu.at_least(job.cpu_cores)
            & self._mb.at_least(job.memory_mb)
            & ~self.kept
        )

    def could_hold(self, job: WaitingJob) -> AgentSet:
        """The agents that have room for the job when they are idle, and are not kept."""
        return (
            self._totals.cpu.at_least(job.cpu_cores)
            & self._totals.mb.at_least(job.memory_mb)
            & ~self._totals.by_slots.get(0, 0)
            & ~self.kept
        )

    def least_loaded(self, agents: AgentSet) -> int:
        """Of `agents`, which must not be empty, the one with the smallest share of slots taken."""
        for share in sorted(self._by_share):
            there = self._by_share[share] & agents
            if there:
                return first(there)
        raise AssertionError("every agent has its share")

    def take(self, place: int, job: WaitingJob) -> None:
        """The job gets its slot, cores and memory of the agent at `place`."""
        self._set_slots(place, self._views[place], self._slots[place] - 1)
        self._cpu.less(place, job.cpu_cores)
        self._mb.less(place, job.memory_mb)

    def _set_slots(self, place: int, view: AgentView, after: int) -> None:
        bit, before = 1 << place, self._slots[place]
        self._slots[place] = after
        self._with_slot = self._with_slot | bit if after > 0 else self._with_slot & ~bit
        share = _share(view, before)
        self._by_share[share] &= ~bit
        if not self._by_share[share]:
            del self._by_share[share]
        self._by_share[_share(view, after)] |= bit


class _Totals:
    """What agents have when they are idle."""

    def __init__(self, views: Sequence[AgentView]) -> None:
        self._views = views

    @property
    def known(self) -> int:
        return max(self.cpu.known, self.mb.known)

    @cached_property
    def by_slots(self) -> Mapping[int, AgentSet]:
        return by_key(self._views, lambda view: (view.slots,))

    @cached_property
    def cpu(self) -> _Amounts:
        return _Amounts([view.cpu_cores for view in self._views])

    @cached_property
    def mb(self) -> _Amounts:
        return _Amounts([view.memory_mb for view in self._views])


class _Amounts:
    """How much of one thing each agent has."""

    def __init__(self, amounts: list[float] | list[int]) -> None:
        self._amounts: list[float] = list(amounts)
        self._with: dict[float, AgentSet] = {}
        self._origin: _Amounts | None = None
        """What this is a copy of, as long as it is the same."""

    @property
    def known(self) -> int:
        """For how many amounts it knows who has them."""
        return len(self._with)

    def copied(self) -> _Amounts:
        amounts = _Amounts(self._amounts)
        amounts._with = self._with.copy()
        amounts._origin = self
        return amounts

    def at_least(self, asked: float) -> AgentSet:
        found = self._with.get(asked)
        if found is None and self._origin is not None:
            self._with[asked] = found = self._origin.at_least(asked)
        if found is None:
            found = of([place for place, has in enumerate(self._amounts) if has >= asked])
            self._with[asked] = found
        return found

    def less(self, place: int, by: float) -> None:
        self.set(place, self._amounts[place] - by)

    def set(self, place: int, left: float) -> None:
        self._origin = None
        self._amounts[place], bit = left, 1 << place
        for asked, agents in self._with.items():
            self._with[asked] = agents | bit if left >= asked else agents & ~bit


def _share(view: AgentView, free: int) -> float:
    return 1 - free / view.slots if view.slots else 1.0
