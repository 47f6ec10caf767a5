"""Which agents a job may have at all: named, labelled, allowed, with its toolchain, taking jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Final

from aegis_protocol.states import AgentState
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from aegis_control.scheduler.agent_set import AgentSet, by_key
from aegis_control.scheduler.objections import Objection
from aegis_control.scheduler.words import AgentView, WaitingJob

_WORDS: Final[Mapping[AgentState, str]] = {
    AgentState.DISCONNECTED: "has no link to control",
    AgentState.PAUSED: "paused",
    AgentState.DRAINING: "takes no new jobs",
    AgentState.QUARANTINED: "quarantined",
    AgentState.REVOKED: "revoked",
}
"""What is said of an agent that takes no jobs, where it gives no reason itself."""

_Chains = tuple[tuple[str, str, tuple[str, ...]], ...]
"""The toolchains of an agent: kind, version, targets."""


@lru_cache(maxsize=4096)
def satisfies(version: str, wanted: str) -> bool:
    """Tell whether `version` is within the PEP 440 specifier `wanted` (empty: any)."""
    if not wanted:
        return True
    try:
        return Version(version) in SpecifierSet(wanted, prereleases=True)
    except (InvalidVersion, InvalidSpecifier):
        return False


class Capability:
    """What does not change while one decision is made. views: sorted by name."""

    def __init__(self, views: Sequence[AgentView]) -> None:
        self._views = views
        self._online: AgentSet = 0
        self._unusable: list[tuple[Objection, AgentSet]] = []
        for (state, reason), agents in by_key(views, lambda v: ((v.state, v.reason),)).items():
            if state is AgentState.ONLINE:
                self._online |= agents
            else:
                why = Objection(f"agent.{state}", reason or _WORDS[state])
                self._unusable.append((why, agents))
        self._toolchains: dict[tuple[str | None, ...], list[tuple[Objection, AgentSet]]] = {}

    @property
    def wishes(self) -> int:
        """For how many different wishes it knows the answer."""
        return len(self._toolchains)

    def objections(self, job: WaitingJob) -> Iterator[tuple[Objection, AgentSet]]:
        """
        What is in the way, in the order in which it is told, each with the agents that it is
        true of. An agent is told with the first.
        """
        yield from self._wrong_agent(job)
        if job.target is not None or job.toolchain is not None:
            yield from self._incapable(job)
        yield from self._unusable

    def _wrong_agent(self, job: WaitingJob) -> Iterator[tuple[Objection, AgentSet]]:
        if job.agent is not None:
            why = Objection("agent.not_asked", f"the job asks for the agent {job.agent}")
            yield why, ~self._named.get(job.agent, 0)
        for key, value in sorted(job.labels.items()):
            why = Objection("labels.differ", f"the job asks for the label {key}={value}")
            yield why, ~self._labelled.get((key, value), 0)
        for words in job.among:
            allowed = 0
            for word in words:
                key, _, value = word.partition("=")
                allowed |= self._named.get(word, 0) | self._labelled.get((key, value), 0)
            left = ", ".join(words) or "none"
            yield Objection("agent.not_allowed", f"key or policy leave {left}"), ~allowed

    def _incapable(self, job: WaitingJob) -> list[tuple[Objection, AgentSet]]:
        wish = job.toolchain
        kind, version = (None, None) if wish is None else (wish.kind, wish.version)
        known = self._toolchains.get((job.target, kind, version))
        if known is not None:
            return known
        found: dict[Objection, AgentSet] = defaultdict(int)
        for (targets, chains), agents in self._by_toolchains.items():
            why = _lacks(job.target, kind, version or "", targets, chains)
            if why is not None:
                found[why] |= agents
        self._toolchains[job.target, kind, version] = list(found.items())
        return self._toolchains[job.target, kind, version]

    @cached_property
    def _named(self) -> Mapping[str, AgentSet]:
        return by_key(self._views, lambda view: (view.id, view.name))

    @cached_property
    def _labelled(self) -> Mapping[tuple[str, str], AgentSet]:
        return by_key(self._views, lambda view: view.labels.items())

    @cached_property
    def _by_toolchains(self) -> Mapping[tuple[frozenset[str], _Chains], AgentSet]:
        return by_key(
            self._views,
            lambda v: ((v.targets, tuple((c.kind, c.version, c.targets) for c in v.toolchains)),),
        )


def _lacks(
    target: str | None, kind: str | None, version: str, targets: frozenset[str], chains: _Chains
) -> Objection | None:
    """What of the target and of the toolchain wished for is not there."""
    if (
        target is not None
        and target not in targets
        and not any(target in builds for _, _, builds in chains)
    ):
        return Objection("target.missing", f"no toolchain for {target}")
    if kind is None:
        return None
    there = [(has, builds) for name, has, builds in chains if name == kind]
    if not there:
        return Objection("toolchain.missing", f"no {kind}")
    named = f"{kind} {version}".strip()
    fitting = [builds for has, builds in there if satisfies(has, version)]
    if not fitting:
        words = ", ".join(sorted(has for has, _ in there))
        return Objection("toolchain.version", f"{named} is asked for, there is {words}")
    if target is not None and not any(target in builds for builds in fitting):
        return Objection("target.missing", f"{named} has no {target} there")
    return None
