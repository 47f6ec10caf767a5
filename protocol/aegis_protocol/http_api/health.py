"""What anybody may know of how control is."""

from __future__ import annotations

from typing import Literal

from aegis_protocol.model import UnixSeconds, Wire


class Health(Wire):
    status: Literal["ok", "draining", "error"]
    version: str
    protocol: int
    time: UnixSeconds
    store: Literal["ok", "error"]
    policy: Literal["default", "file", "stale"] = "default"
    """Stale: the file as it is now is bad, and an older one counts."""
    agents_online: int


class HealthSessions(Wire):
    """What lives right now: jobs at agents, connections to them, and agents' links."""

    jobs: int
    sessions: int = 0
    links: int
    event_streams: int
