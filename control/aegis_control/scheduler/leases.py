"""
Which board a lease gets: the first that fits, of an agent that is there.

A job of the same identity on a board does not stand in the way of its lease; a lease of the same
identity does, for it can be renewed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.states import BoardState

from aegis_control.scheduler.agent_set import AgentSet, members
from aegis_control.scheduler.board_choice import BoardChoice, fits
from aegis_control.scheduler.capability import Capability
from aegis_control.scheduler.objections import NO_AGENT, Objection, Objections
from aegis_control.scheduler.words import AgentView, WaitingJob


@dataclass(frozen=True)
class Place:
    """A board of an agent."""

    agent_id: str
    board_id: str


def allot(wanted: WaitingJob, agents: Sequence[AgentView]) -> Place | tuple[Reason, ...]:
    """
    Return the board for a lease that asks as `wanted` does (who, agent, one board), or why none is
    free for it.
    """
    views = [
        replace(view, held=_others(view, wanted.identity), leased=view.leased)
        for view in sorted(agents, key=lambda view: (view.name, view.id))
    ]
    if not views:
        return NO_AGENT
    # nobody's: a lease of one's own is in the way too
    asking = replace(wanted, identity="")
    boards = BoardChoice(views)
    against: dict[Objection, AgentSet] = defaultdict(int)
    left = (1 << len(views)) - 1
    for why, true_of in Capability(views).objections(asking):
        if left & true_of:
            against[why] |= left & true_of
            left &= ~true_of
    for place in members(left):
        found = boards.choose(place, asking)
        if not isinstance(found, Objection):
            return Place(views[place].id, found[0])
        against[found] |= 1 << place
    return Objections(views).told(against)


def candidates(wanted: WaitingJob, agents: Sequence[AgentView]) -> frozenset[Place]:
    """The boards that such a lease could have some day, as things are set up now."""
    return frozenset(
        Place(view.id, board.id)
        for view in agents
        if wanted.agent in (None, view.id, view.name)
        for board in view.boards
        if all(fits(wish, board) for wish in wanted.boards)
        and (wanted.board_limits is None or board.id in wanted.board_limits)
        and (board.state is not BoardState.GONE or wanted.boards[0].id is not None)
    )


def _others(view: AgentView, identity: str) -> frozenset[str]:
    return frozenset(board_id for board_id in view.held if view.holders.get(board_id) != identity)
