"""
What a policy file says, once it was read.

The rules are looked through from the top; the first whose `identities` and `roles` include the
caller is the caller's rule, and no other counts. Who has none gets what the role gives. A rule
only narrows: nobody gets more than role, key and settings give. What a rule leaves out, it does
not narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from aegis_protocol.actions import ROLE_ACTIONS, Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.model import Id, TargetName
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from aegis_control.identity import Identity

MAX_RULES: Final = 256
MAX_WORDS: Final = 256
MAX_PRIORITY: Final = 100

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,40}=.{0,80}$")]
RuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RuleLimits(_Strict):
    """How much a caller gets; what is left out is as the settings say."""

    max_bandwidth_kbps: int | None = Field(default=None, ge=1, le=10_000_000)
    max_message_rate: int | None = Field(default=None, ge=1, le=1_000_000)
    """Messages per second on one connection."""
    max_job_secs: int | None = Field(default=None, ge=1, le=86_400)
    max_jobs: int | None = Field(default=None, ge=1, le=10_000)
    """How many jobs each identity may have on agents at once."""
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """Waiting jobs of a higher one go first."""


class Rule(_Strict):
    """
    identities, roles  whom it is for: key ids (or `mcp`), and roles; left out: everybody
    deny               refuse every grant, with these words
    agents             by id or name
    labels             agents that have one of these, written site=lab1
    """

    name: RuleName
    identities: tuple[Id, ...] | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    roles: tuple[Role, ...] | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    deny: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    channels: tuple[ChannelName, ...] | None = Field(default=None, max_length=MAX_WORDS)
    actions: tuple[Action, ...] | None = Field(default=None, max_length=MAX_WORDS)
    targets: tuple[TargetName, ...] | None = Field(default=None, max_length=MAX_WORDS)
    boards: tuple[Id, ...] | None = Field(default=None, max_length=MAX_WORDS)
    agents: tuple[Id, ...] | None = Field(default=None, max_length=MAX_WORDS)
    labels: tuple[Label, ...] | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    limits: RuleLimits = RuleLimits()

    @model_validator(mode="after")
    def _actions_of_its_roles(self) -> Rule:
        if self.roles is None or self.actions is None:
            return self
        may = frozenset[Action]().union(*(ROLE_ACTIONS[role] for role in self.roles))
        beyond = [action for action in self.actions if action not in may]
        if beyond:
            raise ValueError(
                f"{beyond[0]} is not what the role {' or '.join(self.roles)} may: a rule only "
                "narrows. Take it out, or give out keys with a higher role"
            )
        return self

    def is_for(self, identity: Identity) -> bool:
        return (self.identities is None or identity.id in self.identities) and (
            self.roles is None or identity.role in self.roles
        )


class Policy(_Strict):
    """The whole file; without one there are no rules."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    rules: tuple[Rule, ...] = Field(default=(), max_length=MAX_RULES)

    @model_validator(mode="after")
    def _each_can_apply(self) -> Policy:
        _check_each_can_apply(self.rules)
        return self

    def rule_for(self, identity: Identity) -> Rule | None:
        """The first rule that is for `identity`."""
        return next((rule for rule in self.rules if rule.is_for(identity)), None)


def _check_each_can_apply(rules: Sequence[Rule]) -> None:
    names: set[str] = set()
    everybodys: Rule | None = None
    for rule in rules:
        if rule.name in names:
            raise ValueError(f"two rules are called {rule.name}")
        if everybodys is not None:
            raise ValueError(
                f"the rule {rule.name} can never apply: {everybodys.name} above it is for "
                "everybody. Move that one to the end"
            )
        names.add(rule.name)
        if rule.identities is None and rule.roles is None:
            everybodys = rule


NO_POLICY: Final = Policy()
