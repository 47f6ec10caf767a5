"""
Events as they are told: kept with the transaction, and written at its very end.

Ids must be given in the order of the commits, or a reader skips one that was written before and
committed after what it has read. So writers take turns, from the first event written to the commit;
as that is the transaction's end, nobody waits for a row while he has the turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aegis_protocol.events import SignalEvent
from aegis_protocol.fleet_events import FleetEvent
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store.locks import Lock, locked
from aegis_control.store.tables import fleet_events, job_events

_SIGNALS: Final = "aegis_signals"
_ANNOUNCED: Final = "aegis_announced"

_ADD_SIGNALS: Final = insert(job_events)
_ADD_ANNOUNCED: Final = insert(fleet_events)

TOPIC: Final = "events"


@dataclass(frozen=True)
class Announcement:
    """
    An event of `GET /events`, and whom it concerns.

    identity     the only one that may see it, besides operators; None: everybody
    targets      what it is about, for those who want some targets only; none: of interest to all
    project_key  of the job that it is about
    board_id     keys that are limited to other boards don't see it
    """

    event: FleetEvent
    identity: str | None = None
    targets: frozenset[str] = frozenset()
    project_key: str | None = None
    board_id: str | None = None

    @property
    def type(self) -> str:
        return self.event.type


async def tell_owner(
    conn: AsyncConnection, job_id: str, event: SignalEvent, *, now_s: float
) -> None:
    """Tell `event` on the job's own stream."""
    conn.info.setdefault(_SIGNALS, []).append(
        {"job_id": job_id, "type": event.type, "at": now_s, "data": event.model_dump(mode="json")}
    )
    await tell(conn, "job", job_id)


async def announce(conn: AsyncConnection, news: Announcement, *, now_s: float) -> None:
    """Tell `news` on `GET /events`."""
    row: dict[str, Any] = {
        "type": news.type,
        "at": now_s,
        "identity": news.identity,
        "targets": sorted(news.targets),
        "project_key": news.project_key,
        "board_id": news.board_id,
        "data": news.event.model_dump(mode="json"),
    }
    conn.info.setdefault(_ANNOUNCED, []).append(row)
    await tell(conn, TOPIC, "")


async def write_announced(conn: AsyncConnection) -> None:
    """Write what was told in this transaction. Call it last."""
    signals, announced = conn.info.pop(_SIGNALS, None), conn.info.pop(_ANNOUNCED, None)
    if not signals and not announced:
        return
    await locked(conn, Lock.EVENTS)
    if signals:
        await conn.execute(_ADD_SIGNALS, signals)
    if announced:
        await conn.execute(_ADD_ANNOUNCED, announced)


def forget_announced(conn: AsyncConnection) -> None:
    """Drop what a transaction that was rolled back on this connection has left."""
    conn.info.pop(_SIGNALS, None)
    conn.info.pop(_ANNOUNCED, None)
