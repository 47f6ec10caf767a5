"""Who a caller is, and what a secret is."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.http_api.keys import TokenVerdict, VerifyTokenRequest, WhoAmI

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route


async def whoami(control: Control, call: Call) -> Reply:
    identity = call.identity
    return Reply(
        WhoAmI(
            identity=identity.id,
            role=identity.role,
            actions=tuple(sorted(identity.actions)),
            limits={kind: tuple(words) for kind, words in identity.limits.items()},
            expires_at=identity.expires_at,
        )
    )


async def verify_token(control: Control, call: Call) -> Reply:
    """Explain a secret; it is neither kept nor logged."""
    return Reply(await control.explaining.explain(call.taking(VerifyTokenRequest).token.strip()))


ROUTES: Final = (
    Route(
        "GET",
        "/whoami",
        whoami,
        "My key: its role, limits and expiry.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: WhoAmI},
        local=True,
    ),
    Route(
        "POST",
        "/services/verify-token",
        verify_token,
        "What a key, grant or token is: good or why not, until when, for what.",
        role=Role.OPERATOR,
        takes=VerifyTokenRequest,
        gives={HTTPStatus.OK: TokenVerdict},
        local=True,
    ),
)
