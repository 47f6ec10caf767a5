"""Grants that were issued, and the connections that they opened."""

from __future__ import annotations

from typing import Literal

from aegis_protocol.actions import Action
from aegis_protocol.http_api.grants import ChannelText
from aegis_protocol.model import Id, UnixSeconds, Wire


class GrantRow(Wire):
    """
    A grant and what became of it.

    state   unused (and still good), expired (never used), offered, revoked, open, closed
    code    the error that closed its connection, where one did
    source  the address that asked for it
    """

    jti: Id
    job_id: Id
    identity: Id
    agent_id: Id
    agent_name: str | None = None
    channels: tuple[ChannelText, ...] = ()
    actions: tuple[Action, ...] = ()
    source: str | None = None
    state: Literal["unused", "expired", "offered", "revoked", "open", "closed"]
    issued_at: UnixSeconds
    expires_at: UnixSeconds
    offered_at: UnixSeconds | None = None
    opened_at: UnixSeconds | None = None
    closed_at: UnixSeconds | None = None
    revoked_at: UnixSeconds | None = None
    """It, its job or its key was revoked; an agent that is away has not heard of it yet."""
    code: str | None = None


class GrantList(Wire):
    grants: tuple[GrantRow, ...]


class SessionRow(Wire):
    """A connection between a client and an agent. ends_at: its job's time is over then."""

    jti: Id
    job_id: Id
    identity: Id
    agent_id: Id
    agent_name: str | None = None
    channels: tuple[ChannelText, ...] = ()
    source: str | None = None
    opened_at: UnixSeconds
    revoked_at: UnixSeconds | None = None
    ends_at: UnixSeconds | None = None


class SessionList(Wire):
    sessions: tuple[SessionRow, ...]
