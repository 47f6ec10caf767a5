"""How a control is doing, for its operators."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aegis_protocol.model import UnixSeconds, Wire


class SlowOperation(Wire):
    """A request, or a transaction that reads or writes, that took longer than it should."""

    at: UnixSeconds
    kind: Literal["request", "read", "write"]
    what: str
    took_ms: int


class Replica(Wire):
    """A process that serves this store. here: the one that answers."""

    id: str
    name: str
    version: str
    address: str
    started_at: UnixSeconds
    seen_at: UnixSeconds
    alive: bool
    here: bool


class ControlStatus(Wire):
    """
    How control is doing, for its operators.

    agents, jobs  how many there are in each state
    slow          how many operations took longer than `slow_ms` since it started
    skews_s       by agent: its clock less ours when it linked up, where that was noticed
    """

    pid: int
    version: str
    protocol: int
    started_at: UnixSeconds
    time: UnixSeconds
    base_url: str
    listen: str
    state_dir: str
    store: Literal["sqlite", "postgresql"]
    store_ok: bool
    schema_revision: str | None
    agents: dict[str, int]
    jobs: dict[str, int]
    links: int
    event_streams: int
    file_limit: int
    resident_bytes: int
    slow_ms: int
    slow: dict[str, int]
    slow_recent: tuple[SlowOperation, ...] = ()
    replicas: tuple[Replica, ...] = ()
    skews_s: dict[str, float] = Field(default_factory=dict)
