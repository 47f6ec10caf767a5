"""Leases of boards."""

from __future__ import annotations

from http import HTTPStatus

from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api.leases import LeaseList, LeaseRequest, RenewRequest
from aegis_protocol.states import LeaseState

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply
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
