"""Leases of boards."""

from __future__ import annotations

from pydantic import Field

from aegis_protocol.board import BoardWish
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.model import Id, UnixSeconds, Wire
from aegis_protocol.states import LeaseState


class LeaseWish(Wire):
    """A board: by id, or by chip and labels; of any agent, or of one (by id or name)."""

    board: BoardWish
    agent_id: Id | None = None


class LeaseRequest(LeaseWish):
    """
    `POST /leases`.

    for_secs   how long the board is wanted
    wait_secs  how long to wait in the queue when none is free; 0: not at all
    """

    for_secs: int = Field(default=1800, ge=1, le=7 * 86_400)
    wait_secs: int = Field(default=0, ge=0, le=86_400)
    note: str = Field(default="", max_length=200)


class RenewRequest(Wire):
    """`POST /leases/{lease_id}/renew`: hold it for so long from now."""

    for_secs: int = Field(ge=1, le=7 * 86_400)


class Lease(Wire):
    """
    A board that somebody has, or waits for.

    holder      the caller's own identity, an operator sees everybody's; else `another`
    expires_at  queued: when it gives up waiting; held: when it ends
    position    queued: how many wait before it for the same boards
    reasons     queued: why no board is there for it
    end         how it ended: released, expired, idle, kicked
    """

    id: Id
    state: LeaseState
    holder: str
    wish: LeaseWish
    note: str = ""
    agent_id: Id | None = None
    agent_name: str | None = None
    board_id: Id | None = None
    fence: int | None = None
    created_at: UnixSeconds
    held_at: UnixSeconds | None = None
    expires_at: UnixSeconds
    position: int | None = None
    reasons: tuple[Reason, ...] = ()
    end: str | None = None


class LeaseList(Wire):
    leases: tuple[Lease, ...]
