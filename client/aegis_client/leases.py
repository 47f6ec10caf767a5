"""Holding a board for a time: taking it, in the queue if need be, and finding one's lease again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import LeaseNotFound, LeaseOver
from aegis_protocol.http_api.leases import Lease, LeaseRequest
from aegis_protocol.states import LeaseState

from aegis_client.control import ControlClient

_LOOK_S: Final = 1.0
_GIVE_BACK_S: Final = 3.0


async def take(
    control: ControlClient, request: LeaseRequest, *, on_wait: Callable[[Lease], None]
) -> Lease:
    """
    Take a board and return its lease, waiting in the queue for as long as the request says.

    on_wait  called with the lease whenever its place in the queue, or the reason, changes

    Who is interrupted while he waits leaves the queue. Raises what control answers; LeaseOver when
    the time for waiting was over.
    """
    lease = await control.take_lease(request)
    told: tuple[object, ...] = ()
    try:
        while lease.state is LeaseState.QUEUED:
            if told != (lease.position, lease.reasons):
                told = (lease.position, lease.reasons)
                on_wait(lease)
            await asyncio.sleep(_LOOK_S)
            lease = await control.lease(lease.id)
    except BaseException:
        await _given_back(control, lease)
        raise
    if lease.state is LeaseState.ENDED:
        raise LeaseOver(f"no board was free within {request.wait_secs} s", lease_id=lease.id)
    return lease


async def mine(control: ControlClient, word: str) -> Lease:
    """The lease of one's own that `word` names: its id, or its board's. LeaseNotFound."""
    identity = (await control.whoami()).identity
    for lease in (await control.leases()).leases:
        wanted = lease.board_id or lease.wish.board.id
        if lease.holder == identity and word in (lease.id, wanted):
            return lease
    raise LeaseNotFound(f"you have no lease {word}", lease=word)


async def _given_back(control: ControlClient, lease: Lease) -> None:
    try:
        async with asyncio.timeout(_GIVE_BACK_S):
            await control.release_lease(lease.id)
    except (AegisError, TimeoutError):
        pass  # it leaves the queue by itself when its time for waiting is over
