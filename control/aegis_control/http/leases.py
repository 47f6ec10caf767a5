"""Leases of boards."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api.leases import Lease, LeaseList, LeaseRequest, RenewRequest
from aegis_protocol.states import LeaseState

from aegis_control.control import Control
from aegis_control.http.route import Call, Query, Reply, Route
from aegis_control.store.leases import LeaseRecord


async def list_leases(control: Control, call: Call) -> Reply:
    found = await control.leasing.every()
    return Reply(LeaseList(leases=tuple(await control.leasing.shown(found, call.identity))))


async def take(control: Control, call: Call) -> Reply:
    """201 when the board is held, 202 when the lease waits in the queue."""
    lease = await control.leasing.take(call.identity, call.taking(LeaseRequest))
    held = lease.state is LeaseState.HELD
    return await _shown(control, call, lease, HTTPStatus.CREATED if held else HTTPStatus.ACCEPTED)


async def one(control: Control, call: Call) -> Reply:
    lease = await control.leasing.find(call.identity, call.path("lease_id"))
    return await _shown(control, call, lease, HTTPStatus.OK)


async def renew(control: Control, call: Call) -> Reply:
    wanted = call.taking(RenewRequest)
    lease = await control.leasing.renew(
        call.identity, call.path("lease_id"), for_s=float(wanted.for_secs)
    )
    return await _shown(control, call, lease, HTTPStatus.OK)


async def release(control: Control, call: Call) -> Reply:
    lease = await control.leasing.release(call.identity, call.path("lease_id"), force=_force(call))
    return await _shown(control, call, lease, HTTPStatus.OK)


async def _shown(control: Control, call: Call, lease: LeaseRecord, status: HTTPStatus) -> Reply:
    (body,) = await control.leasing.shown((lease,), call.identity)
    return Reply(body, status)


def _force(call: Call) -> bool:
    text = call.request.query.get("force", "0")
    if text not in ("0", "1"):
        raise BadRequest("force: 0 or 1", field="force")
    return text == "1"


ROUTES: Final = (
    Route(
        "GET",
        "/leases",
        list_leases,
        "The leases that are held or in the queue, the oldest first.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: LeaseList},
        local=True,
    ),
    Route(
        "POST",
        "/leases",
        take,
        "Hold a board for a time: 201 when it is held, 202 when it waits in the queue.",
        role=Role.FLASHER,
        takes=LeaseRequest,
        gives={HTTPStatus.CREATED: Lease, HTTPStatus.ACCEPTED: Lease},
        local=True,
    ),
    Route(
        "POST",
        "/leases/{lease_id}/renew",
        renew,
        "Hold it for so long from now.",
        role=Role.FLASHER,
        takes=RenewRequest,
        gives={HTTPStatus.OK: Lease},
        local=True,
    ),
    Route(
        "GET",
        "/leases/{lease_id}",
        one,
        "One lease of mine; an operator's may be anybody's.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: Lease},
        local=True,
    ),
    Route(
        "DELETE",
        "/leases/{lease_id}",
        release,
        "Release my lease; an operator kicks anybody's, with `force=1` in the middle of a flash.",
        role=Role.VIEWER,
        queries=(
            Query("force", "1: a kick waits for no flash.", {"type": "string", "enum": ["0", "1"]}),
        ),
        gives={HTTPStatus.OK: Lease},
        local=True,
    ),
)
