"""API keys: made, listed, revoked."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.http_api.keys import KeyList, KeyMade, KeyRequest

from aegis_control.control import Control
from aegis_control.http.route import Call, Query, Reply, Route
from aegis_control.key_limits import checked
from aegis_control.log import get_logger

log = get_logger("services")


async def make_key(control: Control, call: Call) -> Reply:
    wanted = call.taking(KeyRequest)
    made = await control.keyring.make_key(
        wanted.role,
        name=wanted.name,
        limits=checked(wanted.limits),
        expires_in_s=wanted.expires_in_secs,
    )
    log.info("key.made", key_id=made.id, role=str(made.role), by=call.identity.id)
    return Reply(made, HTTPStatus.CREATED)


async def list_keys(control: Control, call: Call) -> Reply:
    """All of them, or those whose ids begin with `?prefix=`."""
    prefix = call.request.query.get("prefix", "")
    return Reply(KeyList(keys=await control.keyring.rows(prefix=prefix[:80])))


async def revoke_key(control: Control, call: Call) -> Reply:
    key_id = call.path("key_id")
    await control.revoking.key(key_id, "")
    return Reply(status=HTTPStatus.NO_CONTENT)


ROUTES: Final = (
    Route(
        "POST",
        "/services/keys",
        make_key,
        "Make an API key; its text is shown this once.",
        role=Role.OPERATOR,
        takes=KeyRequest,
        gives={HTTPStatus.CREATED: KeyMade},
        local=True,
        lasting=True,
    ),
    Route(
        "GET",
        "/services/keys",
        list_keys,
        "The API keys, without their secrets.",
        role=Role.OPERATOR,
        queries=(Query("prefix", "Only keys whose ids begin so."),),
        gives={HTTPStatus.OK: KeyList},
        local=True,
    ),
    Route(
        "DELETE",
        "/services/keys/{key_id}",
        revoke_key,
        "Take an API key back.",
        role=Role.OPERATOR,
        gives={HTTPStatus.NO_CONTENT: None},
        local=True,
        lasting=True,
    ),
)
