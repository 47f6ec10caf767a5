"""
Jobs in the store. A state moves only from where the table of moves lets it.

Every change is told as `job`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.states import IllegalMove, JobState, ended, sources
from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from aegis_control.bus import tell
from aegis_control.store.tables import jobs

LIVE: Final = (JobState.ASSIGNED, JobState.RUNNING, JobState.LOST)
"""The states in which a job has a slot, and maybe boards, of an agent."""

OPEN: Final = (JobState.PENDING, *LIVE)
"""The states of jobs that are not over."""

ENDS: Final = tuple(state for state in JobState if ended(state))


# built once: to build a statement takes as long as to run it
_ADD: Final = insert(jobs)
_ONE: Final = select(jobs).where(jobs.c.id == bindparam("job"))
_OPEN: Final = select(jobs).where(jobs.c.state.in_(OPEN))
_SOME_OPEN: Final = _OPEN.where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
_SET_END: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"), jobs.c.state.in_(LIVE))
    .values(ends_at=bindparam("end"))
)
_EXPLAIN: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"), jobs.c.state == JobState.PENDING)
    .values(reasons=bindparam("why"))
)


@dataclass(frozen=True)
class JobRecord:
    """
    boards   board id to fencing number, as held when it was assigned
    limits   those of the key that asked, frozen with the job
    returns  how often it went back to pending because nobody connected
    error    why it ended; of a lost job, that its agent came back without it
    client_seen  when a replica last noted that its client is there (the store's clock)
    """

    id: str
    identity: str
    state: JobState
    attempt: int
    request: GrantRequest
    limits: Mapping[str, Sequence[str]]
    agent_id: str | None
    boards: Mapping[str, int]
    candidates: tuple[str, ...]
    reasons: tuple[Reason, ...]
    error: Mapping[str, Any] | None
    returns: int
    created_at: float
    updated_at: float
    assigned_at: float | None
    ends_at: float | None
    client_seen: float | None = None

    @property
    def lacked(self) -> bool:
        """Whether its agent came back without it, and it is not decided what becomes of it."""
        return self.state is JobState.LOST and self.error is not None


async def create(
    conn: AsyncConnection,
    job_id: str,
    identity: str,
    request: GrantRequest,
    limits: Mapping[str, Sequence[str]],
    *,
    now_s: float,
) -> JobRecord:
    """Add a pending job, and return it."""
    kept = {name: list(words) for name, words in limits.items()}
    await conn.execute(
        _ADD,
        {
            "id": job_id,
            "identity": identity,
            "state": JobState.PENDING,
            "attempt": 1,
            "request": request.model_dump(mode="json"),
            "limits": kept,
            "boards": {},
            "candidates": [],
            "reasons": [],
            "returns": 0,
            "created_at": now_s,
            "updated_at": now_s,
        },
    )
    await tell(conn, "job", job_id)
    return JobRecord(
        id=job_id,
        identity=identity,
        state=JobState.PENDING,
        attempt=1,
        request=request,
        limits=kept,
        agent_id=None,
        boards={},
        candidates=(),
        reasons=(),
        error=None,
        returns=0,
        created_at=now_s,
        updated_at=now_s,
        assigned_at=None,
        ends_at=None,
    )


async def move(
    conn: AsyncConnection, job_id: str, to: JobState, *, now_s: float, **values: Any
) -> JobRecord:
    """
    Move a job to `to`, set `values` with it, and return it.

    Raises IllegalMove when it is not there, or in no state from which it may become `to`.
    """
    columns = {"updated_at": now_s, **values}
    statement = _moving(to, tuple(columns))
    row = (await conn.execute(statement, {"job": job_id, **_to_set(columns)})).one_or_none()
    await tell(conn, "job", job_id)
    if row is None:
        raise IllegalMove(f"job {job_id} can't become {to}", job_id=job_id, to=str(to))
    return _record(row)


async def get(conn: AsyncConnection, job_id: str) -> JobRecord | None:
    row = (await conn.execute(_ONE, {"job": job_id})).one_or_none()
    return None if row is None else _record(row)


async def recent(
    conn: AsyncConnection,
    identity: str | None,
    *,
    limit: int,
    states: Collection[JobState] = (),
) -> tuple[JobRecord, ...]:
    """The newest jobs of `identity` (None: of everybody) in one of `states` (none: in any)."""
    statement = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if states:
        statement = statement.where(jobs.c.state.in_(states))
    if identity is not None:
        statement = statement.where(jobs.c.identity == identity)
    return tuple(_record(row) for row in await conn.execute(statement))


async def in_states(
    conn: AsyncConnection, states: Collection[JobState], *, agent_id: str | None = None
) -> tuple[JobRecord, ...]:
    """The jobs in one of `states` (of one agent), oldest first."""
    statement = select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.created_at, jobs.c.id)
    if agent_id is not None:
        statement = statement.where(jobs.c.agent_id == agent_id)
    return tuple(_record(row) for row in await conn.execute(statement))


async def open_ones(conn: AsyncConnection, ids: Collection[str] | None) -> Mapping[str, JobRecord]:
    """Those of these jobs (None: of all) that are not over, by id."""
    if ids is None:
        rows = await conn.execute(_OPEN)
    else:
        rows = await conn.execute(_SOME_OPEN, {"jobs": list(ids)})
    return {row.id: _record(row) for row in rows}


async def count_by_state(conn: AsyncConnection) -> Mapping[JobState, int]:
    """How many jobs there are in each state, zero included."""
    statement = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    found = {JobState(state): int(count) for state, count in await conn.execute(statement)}
    return {state: found.get(state, 0) for state in JobState}


async def set_reasons(conn: AsyncConnection, job_id: str, reasons: Sequence[Reason]) -> bool:
    """Say why a pending job waits; False when it is not pending any more."""
    why = [reason.model_dump(mode="json") for reason in reasons]
    await tell(conn, "job", job_id)
    return (await conn.execute(_EXPLAIN, {"job": job_id, "why": why})).rowcount > 0


async def set_end(conn: AsyncConnection, job_id: str, ends_at: float) -> None:
    await tell(conn, "job", job_id)
    await conn.execute(_SET_END, {"job": job_id, "end": ends_at})


async def set_lacked(conn: AsyncConnection, job_id: str, error: ErrorBody, *, now_s: float) -> None:
    """The agent of a lost job came back without it; `updated_at` says when."""
    await tell(conn, "job", job_id)
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.LOST)
        .values(error=error.model_dump(mode="json"), updated_at=now_s)
    )


async def note_clients(conn: AsyncConnection, job_ids: Collection[str], *, now_s: float) -> None:
    """The clients of these jobs, which are pending or lost, are there."""
    await conn.execute(
        update(jobs)
        .where(jobs.c.id.in_(job_ids), jobs.c.state.in_((JobState.PENDING, JobState.LOST)))
        .values(client_seen=now_s)
    )
    for job_id in job_ids:
        await tell(conn, "job", job_id)


async def forget_ended(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete jobs that ended before `before_s`; returns how many."""
    statement = delete(jobs).where(jobs.c.state.in_(ENDS), jobs.c.updated_at < before_s)
    return (await conn.execute(statement)).rowcount


@lru_cache(maxsize=256)
def _moving(to: JobState, columns: tuple[str, ...]) -> ReturningUpdate[Any]:
    return (
        update(jobs)
        .where(jobs.c.id == bindparam("job"), jobs.c.state.in_(sources(to)))
        .values(state=to, **{name: bindparam(f"set_{name}") for name in columns})
        .returning(*jobs.c)
    )


def _to_set(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    return {f"set_{name}": value for name, value in columns.items()}


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        identity=row.identity,
        state=JobState(row.state),
        attempt=row.attempt,
        request=GrantRequest.model_validate(row.request),
        limits=row.limits,
        agent_id=row.agent_id,
        boards=row.boards,
        candidates=tuple(row.candidates),
        reasons=tuple(Reason.model_validate(reason) for reason in row.reasons),
        error=row.error,
        returns=row.returns,
        created_at=row.created_at,
        updated_at=row.updated_at,
        assigned_at=row.assigned_at,
        ends_at=row.ends_at,
        client_seen=row.client_seen,
    )
