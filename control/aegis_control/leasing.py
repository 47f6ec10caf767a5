"""
Leases: an identity holds a board for a time, and nobody else's jobs get it.

    queued    no board is free for it; in its turn it gets the first that is
    held      until its time is over, it is released or kicked, or no job has used it for long
    ended     its board goes to the next in the queue, then to jobs

A job of the holder that has the board when the lease ends keeps it until the job's end; unless the
lease was kicked, or ran out while others wait: then the job gives the board back, after the flash
that is being written or, by force, at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.control_link import LeaseRevoke
from aegis_protocol.failures.board import (
    BoardNotFound,
    BoardNotFree,
    LeaseNotFound,
    LeaseOver,
    LeaseTooLong,
)
from aegis_protocol.failures.http import AgentOffline, BoardNotAllowed, RateLimited
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.http_api.leases import Lease, LeaseRequest, LeaseWish
from aegis_protocol.ids import new_id
from aegis_protocol.states import LeaseState
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control import announcements
from aegis_control.fleet import FleetMirror, shown
from aegis_control.fleet_news import tell_boards
from aegis_control.hub import set_within
from aegis_control.identity import Identity
from aegis_control.link.orders import Orders
from aegis_control.log import get_logger
from aegis_control.policy.weighing import AGENT_KINDS
from aegis_control.scheduler import AgentView, Place, WaitingJob, allot, candidates
from aegis_control.store import audit, boards, leases
from aegis_control.store.announcing import announce
from aegis_control.store.audit import Act
from aegis_control.store.boards import Kicked
from aegis_control.store.database import Database
from aegis_control.store.leases import LeaseRecord
from aegis_control.store.mirror import Mirror

log = get_logger("leases")

_LOOK_S: Final = 1.0
_MOST_OPEN: Final = 64
"""Of one identity."""
_KEEP_ENDED_S: Final = 24 * 3600.0
_FORGET_EVERY_S: Final = 600.0
_RETRY_S: Final = 5
_AT_ONCE_S: Final = 10.0
"""How long a lease that does not wait may be in the queue while it is decided on."""


class Leasing:
    """
    max_s   the longest that a lease may be asked for
    idle_s  a lease whose board no job has for so long ends
    """

    def __init__(
        self,
        database: Database,
        fleet: FleetMirror,
        orders: Orders,
        *,
        max_s: float,
        idle_s: float,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._orders = orders
        self._max_s = max_s
        self._idle_s = idle_s
        self._open = Mirror(database, "lease", leases.open_ones)

    async def take(self, identity: Identity, request: LeaseRequest) -> LeaseRecord:
        """
        Give `identity` a board, or a place in the queue for one.

        Raises BoardNotFound, BoardNotAllowed, BoardNotFree (it does not wait), LeaseTooLong,
        RateLimited (it has too many).
        """
        self._check_length(request.for_secs)
        wish = LeaseWish(board=request.board, agent_id=request.agent_id)
        views = (await self._fleet.now()).views()
        asking = _asking("", identity.id, wish, identity.limits, 0.0)
        _check_exists(asking, views)
        now_s = time.time()
        async with self._database.write() as conn:
            if await leases.count_open(conn, identity.id) >= _MOST_OPEN:
                raise RateLimited(f"{_MOST_OPEN} leases are open already", retry_after_s=_RETRY_S)
            lease = await leases.create(
                conn,
                new_id(),
                identity.id,
                wish,
                identity.limits,
                for_s=float(request.for_secs),
                note=request.note,
                now_s=now_s,
                until_s=now_s + (request.wait_secs or _AT_ONCE_S),
            )
            if request.wait_secs:
                await _tell(conn, lease, now_s=now_s)
        await self.advance()
        async with self._database.write() as conn:
            found = await leases.get(conn, lease.id)
            if found is None:
                raise _not_found(lease.id)
            waits_in_vain = found.state is not LeaseState.HELD and not request.wait_secs
            if waits_in_vain:
                await leases.end(conn, lease.id, "expired", now_s=now_s)
        if waits_in_vain:
            reasons = await self._reasons(found)
            words = "; ".join(map(str, reasons)) or "others wait for it"
            raise BoardNotFree(words, reasons=[r.model_dump(mode="json") for r in reasons])
        return found

    async def renew(self, identity: Identity, lease_id: str, *, for_s: float) -> LeaseRecord:
        """
        Let a lease of `identity` last `for_s` from now.

        Raises LeaseNotFound, LeaseOver, LeaseTooLong: others wait for the board, and it would be
        held for longer than any one may.
        """
        self._check_length(for_s)
        lease = await self._owned(identity, lease_id)
        now_s = time.time()
        if lease.held_at is not None and await self._is_awaited(lease):
            left = lease.held_at + self._max_s - now_s
            if for_s > left:
                raise LeaseTooLong(
                    f"others wait for the board: {max(0, int(left))} s more at most",
                    most_secs=max(0, int(left)),
                )
        async with self._database.write() as conn:
            renewed = await leases.extend(conn, lease_id, until_s=now_s + for_s)
            if renewed is None:
                raise LeaseOver(f"the lease {lease_id} is not held", state=str(lease.state))
            await _note(conn, "lease.renewed", renewed, now_s=now_s)
        return renewed

    async def release(self, identity: Identity, lease_id: str, *, force: bool) -> LeaseRecord:
        """
        End a lease of one's own; an operator ends anybody's, and that is a kick.

        Raises LeaseNotFound, LeaseOver.
        """
        lease = await self._visible(identity, lease_id)
        own = lease.identity == identity.id
        kicks = not own or force
        ended = await self._end(lease, "released" if own else "kicked", kicks=kicks, force=force)
        if ended is None:
            raise LeaseOver(f"the lease {lease_id} has ended", state=str(LeaseState.ENDED))
        return ended

    async def find(self, identity: Identity, lease_id: str) -> LeaseRecord:
        """One lease of one's own; an operator's may be anybody's. LeaseNotFound."""
        return await self._visible(identity, lease_id)

    async def every(self) -> tuple[LeaseRecord, ...]:
        """All that are open, the oldest first."""
        return tuple(sorted((await self._open.now()).values(), key=_turn))

    async def shown(self, records: Sequence[LeaseRecord], identity: Identity) -> list[Lease]:
        """The leases as `identity` may see them."""
        fleet, queue = await self._fleet.now(), _queue(await self.every())
        views = fleet.views()
        names = {record.id: record.name for record in fleet.records}
        seen_all = identity.has(Role.OPERATOR)
        return [
            Lease(
                id=lease.id,
                state=lease.state,
                holder=lease.identity if seen_all else shown(lease.identity, identity.id),
                wish=lease.wish,
                note=lease.note if seen_all or lease.identity == identity.id else "",
                agent_id=lease.agent_id,
                agent_name=names.get(lease.agent_id or ""),
                board_id=lease.board_id,
                fence=lease.fence,
                created_at=lease.created_at,
                held_at=lease.held_at,
                expires_at=lease.expires_at,
                position=_position(lease, queue, views),
                reasons=_why(lease, views),
                end=lease.end,
            )
            for lease in records
        ]

    async def advance(self) -> None:
        """Give those in the queue, in their order, what is free for them."""
        now_s = time.time()
        queue = [lease for lease in _queue(await self.every()) if lease.expires_at > now_s]
        if not queue:
            return
        views = (await self._fleet.now()).views()
        for lease in queue:
            found = allot(_asks(lease), views)
            if not isinstance(found, Place):
                continue
            async with self._database.write() as conn:
                held = await leases.give(
                    conn, lease, found.agent_id, found.board_id, now_s=time.time()
                )
                if held is None:
                    continue
                await _note(conn, "lease.taken", held, now_s=time.time())
            log.info("lease.taken", lease_id=held.id, board_id=held.board_id, fence=held.fence)
            views = (await self._fleet.now()).views()

    async def run(self, stopping: asyncio.Event) -> None:
        """End what is over, each second, until `stopping` is set."""
        forgot_at = 0.0
        while not stopping.is_set():
            try:
                await self.look()
                if time.monotonic() - forgot_at > _FORGET_EVERY_S:
                    forgot_at = time.monotonic()
                    async with self._database.write() as conn:
                        await leases.forget_ended(conn, before_s=time.time() - _KEEP_ENDED_S)
            except DBAPIError as exc:
                log.error("leases.failed", detail=str(exc.orig))  # noqa: TRY400
            await set_within(stopping, _LOOK_S)

    async def look(self) -> None:
        """End the leases whose time is over, or that nobody uses."""
        everything = await self.every()
        if not everything:
            return
        now_s = time.time()
        async with self._database.read() as conn:
            unused = await leases.unused_since(conn)
        for lease in everything:
            if lease.expires_at <= now_s:
                awaited = lease.state is LeaseState.HELD and await self._is_awaited(lease)
                await self._end(lease, "expired", kicks=awaited, force=False)
            elif now_s - unused.get(lease.id, now_s) >= self._idle_s:
                await self._end(lease, "idle", kicks=False, force=False)

    async def tell_again(self, agent_id: str) -> None:
        """The agent's link is up: tell it of every holding that was voided and still lives."""
        async with self._database.read() as conn:
            void = await boards.kicked(conn, agent_id)
        for one in void:
            await self._revoke(agent_id, one)

    async def _end(
        self, lease: LeaseRecord, how: str, *, kicks: bool, force: bool
    ) -> LeaseRecord | None:
        now_s = time.time()
        void: Kicked | None = None
        async with self._database.write() as conn:
            ended = await leases.end(conn, lease.id, how, now_s=now_s)
            if ended is None:
                return None
            if kicks and ended.agent_id is not None and ended.board_id is not None:
                kicked = await boards.kick(conn, ended.agent_id, ended.board_id, force=force)
                void = None if kicked is None else kicked[0]
            await _note(conn, f"lease.{how}", ended, now_s=now_s)
        log.info("lease.ended", lease_id=ended.id, board_id=ended.board_id, how=how)
        if void is not None and ended.agent_id is not None:
            await self._revoke(ended.agent_id, void)
        return ended

    async def _revoke(self, agent_id: str, void: Kicked) -> None:
        frame = LeaseRevoke(board_id=void.board_id, fence=void.fence, force=void.force)
        try:
            await self._orders.send(agent_id, frame)
        except AgentOffline:
            log.info("lease.revoke_pending", agent_id=agent_id, board_id=void.board_id)

    async def _visible(self, identity: Identity, lease_id: str) -> LeaseRecord:
        async with self._database.read() as conn:
            lease = await leases.get(conn, lease_id)
        if lease is None or not (identity.has(Role.OPERATOR) or lease.identity == identity.id):
            raise _not_found(lease_id)
        return lease

    async def _owned(self, identity: Identity, lease_id: str) -> LeaseRecord:
        lease = await self._visible(identity, lease_id)
        if lease.identity != identity.id:
            raise _not_found(lease_id)
        return lease

    async def _is_awaited(self, lease: LeaseRecord) -> bool:
        place = Place(lease.agent_id or "", lease.board_id or "")
        queue = _queue(await self.every())
        views = (await self._fleet.now()).views() if queue else []
        return any(place in candidates(_asks(other), views) for other in queue)

    async def _reasons(self, lease: LeaseRecord) -> tuple[Reason, ...]:
        return _why(lease, (await self._fleet.now()).views())

    def _check_length(self, for_s: float) -> None:
        if for_s > self._max_s:
            raise LeaseTooLong(
                f"a lease is for {int(self._max_s)} s at most", most_secs=int(self._max_s)
            )


def _asks(lease: LeaseRecord) -> WaitingJob:
    return _asking(lease.id, lease.identity, lease.wish, lease.limits, lease.created_at)


def _asking(
    lease_id: str,
    identity: str,
    wish: LeaseWish,
    limits: Mapping[str, Sequence[str]],
    created_at: float,
) -> WaitingJob:
    """A lease as the scheduler sees it: a job that wants one board and nothing else."""
    allowed = limits.get("boards")
    return WaitingJob(
        id=lease_id,
        identity=identity,
        created_at=created_at,
        agent=wish.agent_id,
        boards=(wish.board,),
        among=tuple(tuple(limits[kind]) for kind in AGENT_KINDS if kind in limits),
        board_limits=None if allowed is None else tuple(allowed),
    )


def _check_exists(asking: WaitingJob, views: Sequence[AgentView]) -> None:
    anybodys = replace(asking, board_limits=None)
    if not candidates(anybodys, views):
        raise BoardNotFound("there is no such board")
    if not candidates(asking, views):
        raise BoardNotAllowed("the key may use no such board")


def _queue(records: Sequence[LeaseRecord]) -> list[LeaseRecord]:
    return [lease for lease in records if lease.state is LeaseState.QUEUED]


def _turn(lease: LeaseRecord) -> tuple[float, str]:
    return lease.created_at, lease.id


def _position(
    lease: LeaseRecord, queue: Sequence[LeaseRecord], views: Sequence[AgentView]
) -> int | None:
    if lease.state is not LeaseState.QUEUED:
        return None
    mine = candidates(_asks(lease), views)
    before = [other for other in queue if _turn(other) < _turn(lease)]
    return sum(not mine.isdisjoint(candidates(_asks(other), views)) for other in before)


def _why(lease: LeaseRecord, views: Sequence[AgentView]) -> tuple[Reason, ...]:
    if lease.state is not LeaseState.QUEUED:
        return ()
    found = allot(_asks(lease), views)
    return () if isinstance(found, Place) else found


async def _note(conn: AsyncConnection, what: str, lease: LeaseRecord, *, now_s: float) -> None:
    facts = {"lease_id": lease.id, "holder": lease.identity, "fence": lease.fence}
    act = Act(what=what, agent_id=lease.agent_id, board_id=lease.board_id, facts=facts)
    await audit.record(conn, act, now_s=now_s)
    await _tell(conn, lease, now_s=now_s)


async def _tell(conn: AsyncConnection, lease: LeaseRecord, *, now_s: float) -> None:
    """Tell on `GET /events` how the lease is, and the board that it has or had."""
    await announce(conn, announcements.lease_state(lease), now_s=now_s)
    if lease.agent_id is not None and lease.board_id is not None:
        await tell_boards(conn, lease.agent_id, [lease.board_id], now_s=now_s)


def _not_found(lease_id: str) -> LeaseNotFound:
    return LeaseNotFound(f"there is no lease {lease_id} of yours", lease_id=lease_id)
