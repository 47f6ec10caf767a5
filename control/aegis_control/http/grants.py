"""Asking for a grant."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route


async def request_grant(control: Control, call: Call) -> Reply:
    """200 with a grant, or 202 with the reasons to wait."""
    reply = await control.granting.request(
        call.identity, call.taking(GrantRequest), idempotency_key=_idempotency_key(call)
    )
    granted = isinstance(reply, GrantReply)
    return Reply(reply, HTTPStatus.OK if granted else HTTPStatus.ACCEPTED)


def _idempotency_key(call: Call) -> str | None:
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= 200 and key.isascii() and key.isprintable()):
        raise BadRequest(
            "Idempotency-Key: 1 to 200 printable ASCII characters", field="Idempotency-Key"
        )
    return key


ROUTES: Final = (
    Route(
        "POST",
        "/grant/request",
        request_grant,
        "Ask for an agent and a grant: 200 with both, or 202 with the reasons to wait.",
        role=Role.VIEWER,
        takes=GrantRequest,
        gives={HTTPStatus.OK: GrantReply, HTTPStatus.ACCEPTED: PendingReply},
    ),
)
