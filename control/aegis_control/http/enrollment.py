"""How agents join, and the tokens with which they may."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import TokenNotFound
from aegis_protocol.http_api.enrollment import (
    EnrollReply,
    EnrollRequest,
    EnrollTokenList,
    EnrollTokenMade,
    EnrollTokenRequest,
)

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.log import get_logger

log = get_logger("services")


async def enroll(control: Control, call: Call) -> Reply:
    return Reply(await control.enrollment.enroll(call.taking(EnrollRequest)))


async def make_enroll_token(control: Control, call: Call) -> Reply:
    wanted = call.taking(EnrollTokenRequest)
    made = await control.keyring.make_token(ttl_s=wanted.ttl_secs, name=wanted.name)
    log.info("enroll.prepared", expires_at=made.expires_at, by=call.identity.id)
    return Reply(made, HTTPStatus.CREATED)


async def list_enroll_tokens(control: Control, call: Call) -> Reply:
    return Reply(EnrollTokenList(tokens=await control.keyring.tokens()))


async def revoke_enroll_token(control: Control, call: Call) -> Reply:
    token_id = call.path("token_id")
    if not await control.keyring.revoke_token(token_id):
        raise TokenNotFound(f"there is no enrolment token {token_id}", token_id=token_id)
    log.info("enroll.revoked", token_id=token_id, by=call.identity.id)
    return Reply(status=HTTPStatus.NO_CONTENT)


ROUTES: Final = (
    Route(
        "POST",
        "/agents/enroll",
        enroll,
        "Join with a token: a public key in, an agent id and the issuer's keys out.",
        role=None,
        takes=EnrollRequest,
        proves=True,
        gives={HTTPStatus.OK: EnrollReply},
        lasting=True,
    ),
    Route(
        "POST",
        "/services/enroll-tokens",
        make_enroll_token,
        "Make a token with which one agent may enrol.",
        role=Role.OPERATOR,
        takes=EnrollTokenRequest,
        gives={HTTPStatus.CREATED: EnrollTokenMade},
        local=True,
        lasting=True,
    ),
    Route(
        "GET",
        "/services/enroll-tokens",
        list_enroll_tokens,
        "The enrolment tokens, without their secrets.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: EnrollTokenList},
        local=True,
    ),
    Route(
        "DELETE",
        "/services/enroll-tokens/{token_id}",
        revoke_enroll_token,
        "Take an enrolment token back.",
        role=Role.OPERATOR,
        gives={HTTPStatus.NO_CONTENT: None},
        local=True,
        lasting=True,
    ),
)
