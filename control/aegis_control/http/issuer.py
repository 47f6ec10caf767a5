"""The issuer's keys: the public ones for everybody; for operators the list, and a new one."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, Literal

from aegis_protocol.actions import Role
from aegis_protocol.http_api.issuer import IssuerKeyList, IssuerKeyRow, Jwks

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.store.issuer_keys import IssuerKeyRecord


async def jwks(control: Control, call: Call) -> Reply:
    return Reply(control.issuer.jwks())


async def show(control: Control, call: Call) -> Reply:
    return Reply(_listed(control, await control.rotation.every()))


async def rotate(control: Control, call: Call) -> Reply:
    """Make a new key; agents follow, as the present one signs it."""
    return Reply(_listed(control, await control.rotation.rotate()))


def _listed(control: Control, found: Sequence[IssuerKeyRecord]) -> IssuerKeyList:
    valid = {key.kid for key in control.issuer.valid()}
    signing = next((n for n, one in enumerate(found) if one.key.kid == control.issuer.kid), 0)

    def state(number: int, kid: str) -> Literal["signing", "next", "valid", "past"]:
        if number == signing:
            return "signing"
        if number > signing:
            return "next"
        return "valid" if kid in valid else "past"

    return IssuerKeyList(
        keys=tuple(
            IssuerKeyRow(
                kid=one.key.kid,
                x=one.key.x,
                prev_kid=one.key.prev_kid,
                made_at=one.made_at,
                signs_at=one.signs_at,
                state=state(number, one.key.kid),
            )
            for number, one in enumerate(found)
        )
    )


ROUTES: Final = (
    Route(
        "GET",
        "/.well-known/jwks.json",
        jwks,
        "The issuer's public keys.",
        role=None,
        gives={HTTPStatus.OK: Jwks},
    ),
    Route(
        "GET",
        "/services/issuer",
        show,
        "The keys that sign grants, oldest first.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: IssuerKeyList},
        local=True,
    ),
    Route(
        "POST",
        "/services/issuer/rotate",
        rotate,
        "Make a new key, signed by the present one.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: IssuerKeyList},
        local=True,
        lasting=True,
    ),
)
