"""One request for a grant, looked at from every side: what refuses it, and what limits it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

from aegis_protocol.actions import Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import (
    ActionNotAllowed,
    AgentNotAllowed,
    AgentNotFound,
    BadRequest,
    BoardNotAllowed,
    ChannelNotAllowed,
    PolicyDenied,
    PriorityNotAllowed,
    RoleInsufficient,
    TargetNotAllowed,
)
from aegis_protocol.http_api.grants import GrantWish

from aegis_control.identity import Identity
from aegis_control.policy.rules import MAX_PRIORITY, Rule
from aegis_control.store.agents import AgentRecord
from aegis_control.targets import check_target, check_version_wish

CHANNEL_ACTION: Final[Mapping[str, Action]] = MappingProxyType(
    {
        ChannelName.SOURCE: Action.SOURCE_WRITE,
        ChannelName.PTY: Action.BUILD_READ,
        ChannelName.FIRMWARE: Action.ARTIFACT_READ,
        ChannelName.SERIAL: Action.CONSOLE_READ,
    }
)
"""What a channel is for; without the action it would be of no use."""

AGENT_KINDS: Final = ("agents", "labels", "policy.agents", "policy.labels")
"""What a job keeps of the agents that it may go to: of each kind the agent must be one."""

_EVERYTHING: Final = Rule(name="everything")

_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True)
class Settings:
    """What control's settings give everybody; 0: not limited."""

    allowed_channels: tuple[str, ...]
    max_bandwidth_kbps: int
    max_message_rate: int
    max_job_secs: int


@dataclass(frozen=True)
class Known:
    """
    agents  those enrolled
    placed  for a job that has its agent already: that one
    """

    agents: Collection[AgentRecord] = ()
    placed: AgentRecord | None = None


@dataclass(frozen=True)
class Limits:
    """
    What a grant is limited to; 0: not limited.

    placement  by kind, what the job keeps for the scheduler: a key's limits as they are; `boards`
               and `jobs` narrowed by the policy; `policy.agents`, `policy.labels`, `priority`
    """

    max_bandwidth_kbps: int
    max_message_rate: int
    max_job_secs: int
    placement: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Why:
    """One thing that decided, and the rule that it comes from."""

    rule: str
    error: AegisError


class Asked:
    """One request, looked at from every side."""

    def __init__(
        self,
        identity: Identity,
        rule: Rule | None,
        settings: Settings,
        request: GrantWish,
        known: Known,
    ) -> None:
        self._identity = identity
        self._rule = rule
        self._narrows = _EVERYTHING if rule is None else rule
        self._policy = name_of(rule, identity)
        self._settings = settings
        self._request = request
        self._known = known
        permitted = identity.actions if rule is None else _within(identity.actions, rule.actions)
        self._permitted = frozenset(permitted)
        wanted = permitted if request.actions is None else request.actions
        self.actions = tuple(sorted(set(wanted)))

    def objections(self) -> tuple[Why, ...]:
        found = [
            self._denied(),
            *self._channels(),
            *self._excess_actions(),
            *self._useless_channels(),
            *self._targets(),
            *self._boards(),
            self._priority(),
            self._agent(),
            *self._sense(),
        ]
        return tuple(why for why in found if why is not None)

    def limits(self) -> Limits:
        mine, settings = self._narrows.limits, self._settings
        return Limits(
            max_bandwidth_kbps=_lower(settings.max_bandwidth_kbps, mine.max_bandwidth_kbps),
            max_message_rate=_lower(settings.max_message_rate, mine.max_message_rate),
            max_job_secs=_lower(settings.max_job_secs, mine.max_job_secs),
            placement=self._placement(),
        )

    def _placement(self) -> Mapping[str, tuple[str, ...]]:
        kept = {kind: tuple(words) for kind, words in self._identity.limits.items()}
        rule = self._narrows
        if rule.boards is not None:
            kept["boards"] = _within(rule.boards, kept.get("boards"))
        if rule.agents is not None:
            kept["policy.agents"] = rule.agents
        if rule.labels is not None:
            kept["policy.labels"] = rule.labels
        if rule.limits.max_jobs is not None:
            own = int((kept.get("jobs") or ("0",))[0])
            kept["jobs"] = (str(_lower(own, rule.limits.max_jobs)),)
        asked = self._request.priority
        priority = rule.limits.priority if asked is None else asked
        if priority:
            kept["priority"] = (str(priority),)
        return kept

    def _denied(self) -> Why | None:
        if self._rule is None or self._rule.deny is None:
            return None
        return Why(
            self._policy,
            PolicyDenied(f"the policy's rule {self._rule.name} refuses: {self._rule.deny}"),
        )

    def _channels(self) -> list[Why]:
        asked, allowed = self._request.required_channels, self._settings.allowed_channels
        sources = (
            ("ALLOWED_CHANNELS", "", allowed),
            *self._sources("channels", self._narrows.channels),
        )
        for *_, given in sources:
            allowed = _within(allowed, given)
        refused = [channel for channel in asked if channel not in allowed]
        return [
            Why(
                name,
                ChannelNotAllowed(
                    f"the channel {next(c for c in asked if c not in given)} is not allowed; "
                    f"allowed are {', '.join(allowed) or 'none'}",
                    channels=refused,
                    allowed=list(allowed),
                ),
            )
            for name, _, given in sources
            if any(channel not in given for channel in asked)
        ]

    def _excess_actions(self) -> list[Why]:
        identity, found = self._identity, []
        beyond_role = sorted(set(self.actions) - identity.actions)
        if beyond_role:
            error: AegisError = RoleInsufficient(
                f"the action {beyond_role[0]} is not the role {identity.role}'s",
                actions=[str(action) for action in beyond_role],
                role=str(identity.role),
            )
            found.append(Why(f"role {identity.role}", error))
        beyond_rule = sorted((set(self.actions) & identity.actions) - self._permitted)
        if beyond_rule and self._rule is not None:
            error = ActionNotAllowed(
                f"the policy's rule {self._rule.name} leaves out the action {beyond_rule[0]}",
                actions=[str(action) for action in beyond_rule],
            )
            found.append(Why(self._policy, error))
        return found

    def _useless_channels(self) -> list[Why]:
        """Channels that are asked for without the action that they are for."""
        identity, found = self._identity, []
        for channel in self._request.required_channels:
            needed = CHANNEL_ACTION.get(channel)
            if needed is None or needed in self.actions:
                continue
            by_role = needed not in identity.actions
            by_rule = not by_role and needed not in self._permitted and self._rule is not None
            what = f"the channel {channel} needs the action {needed}, which "
            facts = {"channel": channel, "action": str(needed)}
            if by_rule and self._rule is not None:
                denied = ActionNotAllowed(
                    f"{what}the policy's rule {self._rule.name} leaves out", **facts
                )
                found.append(Why(self._policy, denied))
                continue
            what += (
                f"the role {identity.role} does not have" if by_role else "the request leaves out"
            )
            name = f"role {identity.role}" if by_role else "the request"
            remedy = None if by_role else "Leave the channel out, or ask for the action too."
            refused = RoleInsufficient(what, remedy=remedy, **facts, role=str(identity.role))
            found.append(Why(name, refused))
        return found

    def _targets(self) -> list[Why]:
        target = self._request.target
        return [
            Why(
                name,
                TargetNotAllowed(
                    f"{whose} the target {target}", target=target, allowed=sorted(given)
                ),
            )
            for name, whose, given in self._sources("targets", self._narrows.targets)
            if target is not None and target not in given
        ]

    def _boards(self) -> list[Why]:
        named = [wish.id for wish in self._request.boards if wish.id is not None]
        return [
            Why(name, BoardNotAllowed(f"{whose} the board {board}", board_id=board))
            for name, whose, given in self._sources("boards", self._narrows.boards)
            for board in named
            if board not in given
        ]

    def _priority(self) -> Why | None:
        asked = self._request.priority
        free = self._rule is None and self._identity.has(Role.OPERATOR)
        most = MAX_PRIORITY if free else self._narrows.limits.priority
        if asked is None or asked <= most:
            return None
        error = PriorityNotAllowed(f"the priority is at most {most}", asked=asked, most=most)
        return Why(self._policy, error)

    def _sources(
        self, kind: str, rule: Collection[str] | None
    ) -> list[tuple[str, str, Collection[str]]]:
        """Who limits `kind`: the rule's name, the beginning of the sentence, and what is left."""
        key = self._identity.limits.get(kind)
        found: list[tuple[str, str, Collection[str]]] = []
        if key is not None:
            found.append((self._key(kind), "the key may not use", key))
        if rule is not None:
            found.append((self._policy, f"the {self._policy} leaves out", rule))
        return found

    def _agent(self) -> Why | None:
        agent = self._named_agent()
        if agent is None:
            return None
        for name, whose, given in (
            *self._sources("agents", self._narrows.agents),
            *self._sources("labels", self._narrows.labels),
        ):
            if not _is_among(agent, given):
                error = AgentNotAllowed(f"{whose} the agent {agent.name}", agent_id=agent.id)
                return Why(name, error)
        return None

    def _key(self, kind: str) -> str:
        return f"key {self._identity.id}: limit {kind}"

    def _named_agent(self) -> AgentRecord | None:
        """The agent that the job has, or the one that the request names."""
        if self._known.placed is not None:
            return self._known.placed
        wanted = self._request.agent_id
        if wanted is None:
            return None
        return next((a for a in self._known.agents if wanted in (a.id, a.name)), None)

    def _sense(self) -> list[Why]:
        """Whether the request can be met at all, whoever asks."""
        request, found = self._request, []
        most = self.limits().max_job_secs
        if request.timeout_secs > most:
            by = "AEGIS_MAX_JOB_SECS" if most == self._settings.max_job_secs else self._policy
            long = BadRequest(f"timeout_secs: at most {most}", field="timeout_secs")
            found.append(Why(by, long))
        try:
            check_version_wish(request)
            if request.target is not None:
                check_target(request.target, self._known.agents)
        except AegisError as exc:
            found.append(Why("the request", exc))
        if request.agent_id is not None and self._named_agent() is None:
            error = AgentNotFound(
                f"there is no agent {request.agent_id}", agent_id=request.agent_id
            )
            found.append(Why("the request", error))
        return found


def _is_among(agent: AgentRecord, words: Collection[str]) -> bool:
    """Tell whether one of `words` is the agent's id, name or `key=value` label."""
    own = {} if agent.hello is None else agent.hello.labels
    labels = {f"{key}={value}" for key, value in own.items()}
    return not labels.union((agent.id, agent.name)).isdisjoint(words)


def name_of(rule: Rule | None, identity: Identity) -> str:
    return f"role {identity.role}" if rule is None else f"policy rule {rule.name}"


def _within(words: Collection[_Word], given: Collection[str] | None) -> tuple[_Word, ...]:
    return tuple(word for word in words if given is None or word in given)


def _lower(setting: int, rule: int | None) -> int:
    """The lower of two limits, of which 0 and None are none."""
    return min((n for n in (setting, rule) if n), default=0)
