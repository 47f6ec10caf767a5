"""What operators ask for: keys, enrolment tokens, the removal of an agent."""

from __future__ import annotations

from http import HTTPStatus

from aegis_protocol.failures.http import TokenNotFound
from aegis_protocol.http_api.agents import RevokeAgentRequest
from aegis_protocol.http_api.enrollment import EnrollTokenList, EnrollTokenRequest
from aegis_protocol.http_api.keys import KeyList, KeyRequest, VerifyTokenRequest

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply
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


async def remove_agent(control: Control, call: Call) -> Reply:
    """Forget an agent, by id or name: its link is closed and its jobs have failed."""
    await control.membership.remove(call.path("agent_id"))
    return Reply(status=HTTPStatus.NO_CONTENT)


async def revoke_agent(control: Control, call: Call) -> Reply:
    """Take an agent's key back, by id or name: as its removal, and it may not enrol again."""
    reason = call.taking(RevokeAgentRequest).reason
    await control.membership.revoke(call.path("agent_id"), reason=reason)
    return Reply(status=HTTPStatus.NO_CONTENT)


async def verify_token(control: Control, call: Call) -> Reply:
    """Explain a secret; it is neither kept nor logged."""
    return Reply(await control.explaining.explain(call.taking(VerifyTokenRequest).token.strip()))
