"""Boards, with who has them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.http_api.boards import BoardList

from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.route import Call, Reply, Route


async def list_boards(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    allowed = call.identity.limits.get("boards")
    rows = fleet.boards(call.identity.id, sees_all=call.identity.has(Role.OPERATOR))
    return Reply(
        BoardList(boards=tuple(r for r in rows if allowed is None or r.board.id in allowed))
    )


ROUTES: Final = (
    Route(
        "GET",
        "/boards",
        list_boards,
        "The boards, with who holds them.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: BoardList},
        local=True,
    ),
)
