"""
What is known of the agents from one decision to the next; it saves time, and changes nothing.

What agents can do changes hardly ever, and what they have left changes for a few of a thousand from
tick to tick. Both are kept, and brought up to date for those agents that are not as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aegis_control.scheduler.agent_set import AgentSet, by_key
from aegis_control.scheduler.capability import Capability
from aegis_control.scheduler.room import Room
from aegis_control.scheduler.words import AgentView

_MOST_WISHES: Final = 1000
"""Clients make them up: so many answers are kept at most."""


@dataclass(frozen=True)
class Fleet:
    """
    The agents as one decision sees them. views: sorted by name.

    room  for this decision alone: it takes from it
    """

    views: Sequence[AgentView]
    capability: Capability
    room: Room
    warm: Mapping[str, AgentSet]


class KnownFleet:
    """The agents as of the last decision."""

    def __init__(self) -> None:
        self._views: list[AgentView] = []
        self._capability = Capability(())
        self._room = Room(())
        self._warm: Mapping[str, AgentSet] | None = None

    def of(self, agents: Sequence[AgentView]) -> Fleet:
        """The agents as they are now."""
        if not self._keep_up(agents):
            self._views = sorted(agents, key=lambda view: (view.name, view.id))
            self._capability, self._room = Capability(self._views), Room(self._views)
            self._warm = None
        if self._warm is None:
            self._warm = by_key(self._views, lambda view: view.warm)
        views = tuple(self._views)
        return Fleet(views, self._capability, self._room.copied(views), self._warm)

    def _keep_up(self, agents: Sequence[AgentView]) -> bool:
        """Note what became of the agents; False when more changed than what they have left."""
        views, capability = self._views, self._capability
        if len(agents) != len(views) or capability.wishes > _MOST_WISHES or self._room.is_worn:
            return False
        changed = [n for n, view in enumerate(agents) if view is not views[n]]
        if any(_kind(agents[n]) != _kind(views[n]) for n in changed):
            return False
        for place in changed:
            view = agents[place]
            if view.warm != views[place].warm:
                self._warm = None
            self._room.become(place, view)
            views[place] = view
        return True


def _kind(view: AgentView) -> tuple[object, ...]:
    """All of an agent that its jobs don't change, but for boards and what it has warm."""
    return (
        view.id,
        view.name,
        view.state,
        view.reason,
        view.labels,
        view.targets,
        view.toolchains,
        view.slots,
        view.cpu_cores,
        view.memory_mb,
    )
