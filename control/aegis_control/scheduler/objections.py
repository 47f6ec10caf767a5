"""Why a job waits, gathered as sets of agents, and told as reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from aegis_protocol.http_api.jobs import Reason

from aegis_control.scheduler.agent_set import AgentSet, members
from aegis_control.scheduler.words import AgentView

MAX_NAMES: Final = 16
"""So many agents of one reason are named; of a thousand that say the same nobody reads more."""


class Objection(NamedTuple):
    code: str
    detail: str


class Objections:
    """views: the agents, by position."""

    def __init__(self, views: Sequence[AgentView]) -> None:
        self._views = views
        self._told: dict[tuple[Objection, AgentSet], Reason] = {}
        self._named: dict[AgentSet, tuple[str, ...]] = {}

    def told(self, found: Mapping[Objection, AgentSet]) -> tuple[Reason, ...]:
        """One reason per code and words, with the agents that it is true of."""
        return tuple(self._reason(why, found[why]) for why in sorted(found))

    def _reason(self, why: Objection, agents: AgentSet) -> Reason:
        known = self._told.get((why, agents))
        if known is None:
            named = self._names_of(agents)
            # not validated again: these words are our own, and there may be thousands
            known = Reason.model_construct(
                code=why.code,
                detail=why.detail[:500],
                agents=named,
                more=agents.bit_count() - len(named),
            )
            self._told[why, agents] = known
        return known

    def _names_of(self, agents: AgentSet) -> tuple[str, ...]:
        known = self._named.get(agents)
        if known is None:
            named = islice(members(agents), MAX_NAMES)
            self._named[agents] = known = tuple(self._views[place].name for place in named)
        return known


NO_AGENT: Final = (Reason(code="agent.none", detail="no agent is enrolled"),)
