"""What each endpoint does for callers: health, grants, signalling, jobs, agents."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

from aegis_protocol import PROTOCOL_VERSION, __version__
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest, KeyMissing
from aegis_protocol.http_api.agents import AgentList
from aegis_protocol.http_api.boards import BoardList
from aegis_protocol.http_api.enrollment import EnrollRequest
from aegis_protocol.http_api.grants import GrantReply, GrantRequest
from aegis_protocol.http_api.health import Health, HealthSessions
from aegis_protocol.http_api.jobs import JobList
from aegis_protocol.http_api.keys import WhoAmI
from aegis_protocol.http_api.signaling import IceCandidate, OfferRequest
from aegis_protocol.states import JobState
from aiohttp import web

from aegis_control.cancelling import cancel
from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.auth import presented_grant, presented_key
from aegis_control.http.job_body import job_body
from aegis_control.http.route import Call, Reply
from aegis_control.store import agents, jobs, sessions
from aegis_control.store.jobs import LIVE, JobRecord

MAX_ROWS: Final = 1000
ROWS: Final = 200


async def health(control: Control, call: Call) -> Reply:
    """200 while control works; 503 when the store is down or control is stopping."""
    store = await control.database.answers()
    draining = control.stopping.is_set()
    body = Health(
        status="draining" if draining else "ok" if store else "error",
        version=__version__,
        protocol=PROTOCOL_VERSION,
        time=time.time(),
        store="ok" if store else "error",
        policy=control.policy.standing.told,
        agents_online=len(control.links.all()),
    )
    well = store and not draining
    return Reply(body, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)


async def health_sessions(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        counts = await jobs.count_by_state(conn)
        open_sessions = await sessions.count(conn)
    return Reply(
        HealthSessions(
            jobs=sum(counts[state] for state in LIVE),
            sessions=open_sessions,
            links=len(control.links.all()),
            event_streams=control.streams.count,
        )
    )


async def metrics(control: Control, call: Call) -> web.StreamResponse:
    async with control.database.read() as conn:
        counts = await jobs.count_by_state(conn)
    for state in (JobState.PENDING, *LIVE):
        control.metrics.jobs.labels(state=state).set(counts[state])
    return web.Response(
        body=control.metrics.render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def whoami(control: Control, call: Call) -> Reply:
    identity = call.identity
    return Reply(
        WhoAmI(
            identity=identity.id,
            role=identity.role,
            actions=tuple(sorted(identity.actions)),
            limits={kind: tuple(words) for kind, words in identity.limits.items()},
            expires_at=identity.expires_at,
        )
    )


async def jwks(control: Control, call: Call) -> Reply:
    return Reply(control.issuer.jwks())


async def request_grant(control: Control, call: Call) -> Reply:
    """200 with a grant, or 202 with the reasons to wait."""
    reply = await control.granting.request(
        call.identity, call.taking(GrantRequest), idempotency_key=_idempotency_key(call)
    )
    granted = isinstance(reply, GrantReply)
    return Reply(reply, HTTPStatus.OK if granted else HTTPStatus.ACCEPTED)


async def offer(control: Control, call: Call) -> Reply:
    token = presented_grant(call.request)
    if token is None:
        raise KeyMissing(
            "the grant is missing",
            remedy="Send the grant of this job as `Authorization: Bearer`.",
        )
    reply = await control.signaling.offer(call.path("job_id"), token, call.taking(OfferRequest))
    return Reply(reply, HTTPStatus.ACCEPTED)


async def candidate(control: Control, call: Call) -> Reply:
    """By the grant, or by the owner's key for the newest offer."""
    job_id, body = call.path("job_id"), call.taking(IceCandidate)
    token = presented_grant(call.request)
    if token is not None:
        await control.signaling.candidate_by_grant(job_id, token, body)
    else:
        owner = await control.keyring.identify(presented_key(call.request))
        await control.signaling.candidate_by_owner(job_id, owner.id, body)
    return Reply(status=HTTPStatus.NO_CONTENT)


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


async def list_agents(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    return Reply(AgentList(agents=fleet.agents()))


async def list_boards(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    allowed = call.identity.limits.get("boards")
    rows = fleet.boards(call.identity.id, sees_all=call.identity.has(Role.OPERATOR))
    return Reply(
        BoardList(boards=tuple(r for r in rows if allowed is None or r.board.id in allowed))
    )


async def enroll(control: Control, call: Call) -> Reply:
    return Reply(await control.enrollment.enroll(call.taking(EnrollRequest)))


async def link(control: Control, call: Call) -> web.StreamResponse:
    return await control.link_endpoint.serve(call.request)


async def _visible(control: Control, call: Call) -> JobRecord:
    """The job, if it is the caller's or the caller is an operator."""
    if call.identity.has(Role.OPERATOR):
        return await control.ledger.get(call.path("job_id"))
    return await control.ledger.owned(call.path("job_id"), call.identity.id)


async def _job(control: Control, record: JobRecord) -> Reply:
    async with control.database.read() as conn:
        names = {agent.id: agent.name for agent in await agents.every(conn)}
    return Reply(job_body(record, names))


def _idempotency_key(call: Call) -> str | None:
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= 200 and key.isascii() and key.isprintable()):
        raise BadRequest(
            "Idempotency-Key: 1 to 200 printable ASCII characters", field="Idempotency-Key"
        )
    return key


def _states(call: Call) -> tuple[JobState, ...]:
    words = [word for word in call.request.query.get("state", "").split(",") if word]
    try:
        return tuple(JobState(word) for word in words)
    except ValueError as exc:
        raise BadRequest(f"state: there are {', '.join(JobState)}", field="state") from exc


def row_limit(call: Call) -> int:
    text = call.request.query.get("limit", str(ROWS))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_ROWS):
        raise BadRequest(f"limit: 1 to {MAX_ROWS}", field="limit")
    return int(text)
