"""Jobs: listed, shown, canceled."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api.jobs import Job, JobList
from aegis_protocol.states import JobState

from aegis_control.cancelling import cancel
from aegis_control.control import Control
from aegis_control.http.job_body import job_body
from aegis_control.http.route import Call, Query, Reply, Route
from aegis_control.http.rows import LIMIT, row_limit
from aegis_control.store import agents, jobs
from aegis_control.store.jobs import JobRecord


async def list_jobs(control: Control, call: Call) -> Reply:
    """The newest first; an operator sees everybody's."""
    own = None if call.identity.has(Role.OPERATOR) else call.identity.id
    async with control.database.read() as conn:
        records = await jobs.recent(conn, own, limit=row_limit(call), states=_states(call))
        names = {agent.id: agent.name for agent in await agents.every(conn)}
    return Reply(JobList(jobs=tuple(job_body(record, names) for record in records)))


async def one_job(control: Control, call: Call) -> Reply:
    record = await _visible(control, call)
    if record.identity == call.identity.id:
        control.presence.seen(record.id)
    return await _job(control, record)


async def cancel_job(control: Control, call: Call) -> Reply:
    """End a job as canceled; the agent is given a moment to say so itself."""
    record = await _visible(control, call)
    return await _job(control, await cancel(control, record))


async def _visible(control: Control, call: Call) -> JobRecord:
    """The job, if it is the caller's or the caller is an operator."""
    if call.identity.has(Role.OPERATOR):
        return await control.ledger.get(call.path("job_id"))
    return await control.ledger.owned(call.path("job_id"), call.identity.id)


async def _job(control: Control, record: JobRecord) -> Reply:
    async with control.database.read() as conn:
        names = {agent.id: agent.name for agent in await agents.every(conn)}
    return Reply(job_body(record, names))


def _states(call: Call) -> tuple[JobState, ...]:
    words = [word for word in call.request.query.get("state", "").split(",") if word]
    try:
        return tuple(JobState(word) for word in words)
    except ValueError as exc:
        raise BadRequest(f"state: there are {', '.join(JobState)}", field="state") from exc


ROUTES: Final = (
    Route(
        "GET",
        "/jobs",
        list_jobs,
        "My jobs, newest first (an operator: everybody's); `limit` of them.",
        role=Role.VIEWER,
        queries=(LIMIT, Query("state", "Only jobs in these states, comma between.")),
        gives={HTTPStatus.OK: JobList},
        local=True,
    ),
    Route(
        "GET",
        "/jobs/{job_id}",
        one_job,
        "One job.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: Job},
        local=True,
    ),
    Route(
        "DELETE",
        "/jobs/{job_id}",
        cancel_job,
        "Cancel a job.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: Job},
        local=True,
    ),
)
