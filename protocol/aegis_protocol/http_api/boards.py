"""Boards, with who has them."""

from __future__ import annotations

from aegis_protocol.board import Board
from aegis_protocol.model import Id, UnixSeconds, Wire
from aegis_protocol.states import AgentState


class BoardRow(Wire):
    """
    A board with the agent that has it.

    holder     the job that has it: the caller's own, or `another`; an operator sees everybody's
    leased_by  who has it by a lease: the caller's own identity, or `another`; as above
    """

    agent_id: Id
    agent_name: str
    agent_state: AgentState
    board: Board
    holder: str | None = None
    leased_by: str | None = None
    leased_until: UnixSeconds | None = None


class BoardList(Wire):
    boards: tuple[BoardRow, ...]
