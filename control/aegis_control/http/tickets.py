"""
Tickets for event streams, for clients that can't set headers (`EventSource`).

A ticket stands in a URL, and so in logs of others: it serves once, within 30 s, for one stream.
"""

from __future__ import annotations

import time
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import TicketWrong
from aegis_protocol.http_api.tickets import TicketMade, TicketRequest
from aegis_protocol.ids import new_secret
from aiohttp import web

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.identity import Identity
from aegis_control.store import keys, tickets

TICKET_LIFE_S: Final = 30.0

_FLEET: Final = "/events"


async def make_ticket(control: Control, call: Call) -> Reply:
    """A ticket for the stream of a job of the caller's, or for `/events`. JobNotFound."""
    wanted, identity = call.taking(TicketRequest), call.identity
    stream = _FLEET
    if wanted.job_id is not None:
        job = await control.ledger.owned(wanted.job_id, identity.id)
        stream = f"/signaling/{job.id}/events"
    ticket, expires_at = f"aegis_tk_{new_secret()}", time.time() + TICKET_LIFE_S
    whose = {
        "id": identity.id,
        "role": str(identity.role),
        "limits": {kind: list(words) for kind, words in identity.limits.items()},
        "expires_at": identity.expires_at,
    }
    async with control.database.write() as conn:
        await tickets.add(conn, _digest(ticket), whose, stream, expires_at=expires_at)
    made = TicketMade(ticket=ticket, stream=stream, expires_at=expires_at)
    return Reply(made, HTTPStatus.CREATED)


async def ticket_holder(control: Control, request: web.Request, ticket: str) -> Identity:
    """
    Use `ticket` up for this request's stream, and return whose it is.

    Raises TicketWrong: unknown, used, expired, for another stream, or of a key that is no more.
    """
    now_s = time.time()
    async with control.database.write() as conn:
        whose = await tickets.take(conn, _digest(ticket), request.path, now_s=now_s)
        key = None if whose is None else await keys.get(conn, whose["id"])
    ended = whose is None or (whose["expires_at"] is not None and whose["expires_at"] <= now_s)
    if whose is None or ended or (key is not None and key.revoked_at is not None):
        raise TicketWrong("the ticket is unknown, used, expired or for another stream")
    return Identity(whose["id"], Role(whose["role"]), whose["limits"], whose["expires_at"])


def _digest(ticket: str) -> bytes:
    return sha256(ticket.encode("utf-8", "surrogateescape")).digest()


ROUTES: Final = (
    Route(
        "POST",
        "/events/ticket",
        make_ticket,
        "A ticket that opens one stream once, within 30 s, for clients that can't set headers.",
        role=Role.VIEWER,
        takes=TicketRequest,
        gives={HTTPStatus.CREATED: TicketMade},
    ),
)
