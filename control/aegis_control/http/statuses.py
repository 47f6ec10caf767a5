"""Which HTTP status each error code has. A code that is not here is a 500."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "request.invalid": HTTPStatus.BAD_REQUEST,
        "auth.keys_differ": HTTPStatus.BAD_REQUEST,
        "target.unknown": HTTPStatus.BAD_REQUEST,
        "sdp.invalid": HTTPStatus.BAD_REQUEST,
        "sdp.fingerprint_ambiguous": HTTPStatus.BAD_REQUEST,
        "sdp.fingerprint_mismatch": HTTPStatus.BAD_REQUEST,
        "link.too_many_candidates": HTTPStatus.BAD_REQUEST,
        "auth.key_missing": HTTPStatus.UNAUTHORIZED,
        "auth.key_wrong": HTTPStatus.UNAUTHORIZED,
        "auth.ticket_wrong": HTTPStatus.UNAUTHORIZED,
        "grant.invalid": HTTPStatus.UNAUTHORIZED,
        "grant.unknown_issuer": HTTPStatus.UNAUTHORIZED,
        "grant.not_yet_valid": HTTPStatus.UNAUTHORIZED,
        "grant.expired": HTTPStatus.UNAUTHORIZED,
        "role.insufficient": HTTPStatus.FORBIDDEN,
        "channel.not_allowed": HTTPStatus.FORBIDDEN,
        "target.not_allowed": HTTPStatus.FORBIDDEN,
        "board.not_allowed": HTTPStatus.FORBIDDEN,
        "priority.not_allowed": HTTPStatus.FORBIDDEN,
        "agent.not_allowed": HTTPStatus.FORBIDDEN,
        "action.not_allowed": HTTPStatus.FORBIDDEN,
        "policy.denied": HTTPStatus.FORBIDDEN,
        "grant.revoked": HTTPStatus.FORBIDDEN,
        "origin.refused": HTTPStatus.FORBIDDEN,
        "enroll.refused": HTTPStatus.FORBIDDEN,
        "path.not_found": HTTPStatus.NOT_FOUND,
        "job.not_found": HTTPStatus.NOT_FOUND,
        "agent.not_found": HTTPStatus.NOT_FOUND,
        "key.not_found": HTTPStatus.NOT_FOUND,
        "enroll.token_not_found": HTTPStatus.NOT_FOUND,
        "agent.revoked": HTTPStatus.FORBIDDEN,
        "grant.not_found": HTTPStatus.NOT_FOUND,
        "request.method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
        "job.over": HTTPStatus.CONFLICT,
        "grant.stale": HTTPStatus.CONFLICT,
        "issuer.rotation_refused": HTTPStatus.CONFLICT,
        "state.illegal_move": HTTPStatus.CONFLICT,
        "enroll.name_taken": HTTPStatus.CONFLICT,
        "agent.quarantined": HTTPStatus.CONFLICT,
        "board.not_found": HTTPStatus.NOT_FOUND,
        "board.not_free": HTTPStatus.CONFLICT,
        "lease.not_found": HTTPStatus.NOT_FOUND,
        "lease.over": HTTPStatus.CONFLICT,
        "lease.too_long": HTTPStatus.BAD_REQUEST,
        "request.idempotency_conflict": HTTPStatus.CONFLICT,
        "request.too_slow": HTTPStatus.REQUEST_TIMEOUT,
        "request.too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request.rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
        "agent.offline": HTTPStatus.SERVICE_UNAVAILABLE,
        "control.unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    }
)

RETRY_AFTER_S: Final = 2
"""Said with 429 and 503 where the error does not know better."""


def status_of(code: str) -> HTTPStatus:
    return STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
