"""Permissions that were taken back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aegis_protocol.model import Id, UnixSeconds, Wire


class RevokeRequest(Wire):
    """`POST /services/revocations`. id: a grant's jti, a job's id, a key's id."""

    kind: Literal["grant", "job", "key"]
    id: Id
    reason: str = Field(default="", max_length=200)


class RevocationRow(Wire):
    """What one agent was told to end. state: done, or pending: revoked, but not yet there."""

    seq: int
    kind: Literal["grant", "job", "key"]
    id: Id
    agent_id: Id
    agent_name: str
    job_id: Id | None = None
    reason: str = ""
    by: str
    at: UnixSeconds
    state: Literal["done", "pending"]


class RevocationList(Wire):
    revocations: tuple[RevocationRow, ...]
