"""Tickets for event streams."""

from __future__ import annotations

from aegis_protocol.model import Id, UnixSeconds, Wire


class TicketRequest(Wire):
    """`POST /events/ticket`. job_id: for this job's stream; without it for `GET /events`."""

    job_id: Id | None = None


class TicketMade(Wire):
    """Serves once, for `stream?ticket=…`, until it expires."""

    ticket: str
    stream: str
    expires_at: UnixSeconds
