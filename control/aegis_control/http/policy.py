"""What operators ask about the policy: what is in force, and what it would decide."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import KeyNotFound, KeyWrong
from aegis_protocol.http_api.policy import (
    PolicyCheckRequest,
    PolicyDecision,
    PolicyReason,
    PolicyShown,
)

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.identity import MCP, Identity
from aegis_control.key_limits import checked
from aegis_control.keyring import check_good, identity_of
from aegis_control.policy.decision import Decision, Why
from aegis_control.policy.in_force import digest
from aegis_control.store import keys


async def show(control: Control, call: Call) -> Reply:
    standing = control.policy.standing
    return Reply(
        PolicyShown(
            file=None if standing.path is None else str(standing.path),
            loaded_at=standing.loaded_at,
            sha256=digest(standing.policy),
            rules=tuple(
                rule.model_dump(mode="json", exclude_defaults=True)
                for rule in standing.policy.rules
            ),
            trouble=_body(standing.trouble),
        )
    )


async def check(control: Control, call: Call) -> Reply:
    """Decide exactly as a request of that caller would be, and make nothing."""
    wanted = call.taking(PolicyCheckRequest)
    identity, stands_against = await _caller(control, wanted)
    decision = await control.granting.decide(identity, wanted.wish)
    reasons = (*stands_against, *decision.reasons)
    return Reply(_told(identity, decision, reasons))


async def _caller(control: Control, wanted: PolicyCheckRequest) -> tuple[Identity, tuple[Why, ...]]:
    """Who would ask, and what is wrong with the key itself."""
    if wanted.role is not None:
        return Identity(wanted.key_id, wanted.role, checked(wanted.limits)), ()
    if wanted.key_id == MCP and control.config.mcp_secrets:
        return control.keyring.shared(), ()
    async with control.database.read() as conn:
        record = await keys.get(conn, wanted.key_id)
    if record is None:
        raise KeyNotFound(f"there is no key {wanted.key_id}", key_id=wanted.key_id)
    try:
        check_good(record)
    except KeyWrong as exc:
        return identity_of(record), (Why(f"key {record.id}", exc),)
    return identity_of(record), ()


def _told(identity: Identity, decision: Decision, reasons: tuple[Why, ...]) -> PolicyDecision:
    limits = decision.limits
    return PolicyDecision(
        identity=identity.id,
        role=identity.role,
        allowed=not reasons,
        rule=reasons[0].rule if reasons else decision.rule,
        reasons=tuple(
            PolicyReason(
                rule=why.rule,
                code=why.error.code,
                message=why.error.message,
                remedy=why.error.remedy,
            )
            for why in reasons
        ),
        channels=() if reasons else decision.channels,
        actions=() if reasons else decision.actions,
        max_bandwidth_kbps=limits.max_bandwidth_kbps,
        max_message_rate=limits.max_message_rate,
        max_job_secs=limits.max_job_secs,
        limits=dict(limits.placement),
        error=_body(reasons[0].error) if reasons else None,
    )


def _body(error: AegisError | None) -> dict[str, object] | None:
    return None if error is None else error.body().model_dump(mode="json")


ROUTES: Final = (
    Route(
        "GET",
        "/services/policy",
        show,
        "The policy in force.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: PolicyShown},
        local=True,
    ),
    Route(
        "POST",
        "/services/policy/check",
        check,
        "What would be decided about a request for a grant, and by which rule; nothing is made.",
        role=Role.OPERATOR,
        takes=PolicyCheckRequest,
        gives={HTTPStatus.OK: PolicyDecision},
        local=True,
    ),
)
