"""
What is known of an agent's link, wherever it is: `Linked`.

    Link       ours: link.link
    OtherLink  another replica's, as the store has it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aegis_protocol.board import Board
from aegis_protocol.states import AgentState


class Linked(Protocol):
    """heard_at: when it was last heard (unix seconds), as far as this replica knows."""

    @property
    def agent_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def boards(self) -> tuple[Board, ...]: ...
    @property
    def warm(self) -> frozenset[str]: ...
    @property
    def paused(self) -> str | None: ...
    @property
    def draining(self) -> bool: ...
    @property
    def heard_at(self) -> float | None: ...


@dataclass(frozen=True)
class OtherLink:
    """facts: what the others were read from."""

    agent_id: str
    replica_id: str
    epoch: int
    facts: Mapping[str, Any]
    boards: tuple[Board, ...]
    warm: frozenset[str]
    paused: str | None
    draining: bool
    heard_at: float | None = None

    @classmethod
    def read(
        cls, agent_id: str, replica_id: str, epoch: int, facts: Mapping[str, Any]
    ) -> OtherLink:
        return cls(
            agent_id=agent_id,
            replica_id=replica_id,
            epoch=epoch,
            facts=facts,
            boards=tuple(Board.model_validate(board) for board in facts.get("boards", ())),
            warm=frozenset(facts.get("warm", ())),
            paused=facts.get("paused"),
            draining=bool(facts.get("draining")),
        )


def facts_of(
    boards: tuple[Board, ...], warm: frozenset[str], paused: str | None, draining: bool
) -> Mapping[str, Any]:
    """What other replicas need to know of a link, as `OtherLink.read` takes it."""
    return {
        "boards": [board.model_dump(mode="json") for board in boards],
        "warm": sorted(warm),
        "paused": paused,
        "draining": draining,
    }


def state_of(link: Linked) -> tuple[AgentState, str]:
    """The agent's state as it says itself, and why it takes no jobs when it does not."""
    if link.draining:
        return AgentState.DRAINING, link.paused or ""
    if link.paused is not None:
        return AgentState.PAUSED, link.paused
    return AgentState.ONLINE, ""
