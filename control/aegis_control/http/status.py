"""`GET /services/status`: how this control is doing, for its operators."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aegis_protocol import PROTOCOL_VERSION, __version__
from aegis_protocol.actions import Role
from aegis_protocol.http_api.status import ControlStatus, Replica, SlowOperation
from sqlalchemy.exc import DBAPIError

from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.route import Call, Reply, Route
from aegis_control.store import clock, jobs, migrate, replicas
from aegis_control.store.replicas import ReplicaRecord

_SKEW_S: Final = 1.0
"""Clocks that are off by less are not told of."""


async def status(control: Control, call: Call) -> Reply:
    """Answers while the store is down too, with what is known without it."""
    agents: Counter[str] = Counter()
    open_jobs: dict[str, int] = {}
    revision: str | None = None
    others: tuple[ReplicaRecord, ...] = ()
    skews: dict[str, float] = {}
    store_ok = True
    try:
        async with control.database.read() as conn:
            fleet = await Fleet.look(conn, control.links)
            counts = await jobs.count_by_state(conn)
            revision = await conn.run_sync(migrate.revision)
            others = await replicas.every(conn, now_s=await clock.now_s(conn))
        agents.update(str(view.state) for view in fleet.views())
        skews = {
            record.id: round(record.skew_s, 1)
            for record in fleet.records
            if record.skew_s is not None
            and abs(record.skew_s) > _SKEW_S
            and record.id in fleet.roll.links
        }
        open_jobs = {str(state): count for state, count in counts.items()}
    except DBAPIError:
        store_ok = False
    slow = control.slow
    return Reply(
        ControlStatus(
            pid=os.getpid(),
            version=__version__,
            protocol=PROTOCOL_VERSION,
            started_at=control.started_at,
            time=time.time(),
            base_url=control.base_url,
            listen=control.config.listen,
            state_dir=str(control.config.state_dir),
            store="postgresql" if control.database.shared else "sqlite",
            store_ok=store_ok and control.database.wellness.trouble is None,
            schema_revision=revision,
            agents=dict(agents),
            jobs=open_jobs,
            links=len(control.links.all()),
            event_streams=control.streams.count,
            file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            resident_bytes=_resident_bytes(),
            slow_ms=control.config.slow_ms,
            slow={str(kind): count for kind, count in slow.counts.items()},
            slow_recent=tuple(
                SlowOperation(
                    at=done.at, kind=done.kind, what=done.what, took_ms=round(done.took_s * 1000)
                )
                for done in slow.recent
            ),
            replicas=tuple(
                Replica(**asdict(one), here=one.id == control.database.replica_id) for one in others
            ),
            skews_s=skews,
        )
    )


def _resident_bytes() -> int:
    """0 where there is no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


ROUTES: Final = (
    Route(
        "GET",
        "/services/status",
        status,
        "How this control is doing: process, store, agents, jobs, replicas, what was slow.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: ControlStatus},
        local=True,
    ),
)
