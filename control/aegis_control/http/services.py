"""What operators ask for: keys, enrolment tokens, the removal of an agent."""

from __future__ import annotations

from http import HTTPStatus

from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import AgentNotFound, KeyNotFound, LinkRefused
from aegis_protocol.http_api import EnrollTokenRequest, KeyList, KeyRequest
from aegis_protocol.states import JobState

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply
from aegis_control.key_limits import checked
from aegis_control.log import get_logger
from aegis_control.store import agents, audit, jobs
from aegis_control.store.audit import Act
from aegis_control.store.jobs import LIVE

log = get_logger("services")


async def make_key(control: Control, call: Call) -> Reply:
    wanted = call.taking(KeyRequest)
    made = await control.keyring.make_key(
        wanted.role,
        name=wanted.name,
        limits=checked(wanted.limits),
        expires_in_s=wanted.expires_in_secs,
    )
    log.info("key.made", key_id=made.id, role=str(made.role), by=call.identity.id)
    return Reply(made, HTTPStatus.CREATED)


async def list_keys(control: Control, call: Call) -> Reply:
    """All of them, or those whose ids begin with `?prefix=`."""
    prefix = call.request.query.get("prefix", "")
    return Reply(KeyList(keys=await control.keyring.rows(prefix=prefix[:80])))


async def revoke_key(control: Control, call: Call) -> Reply:
    key_id = call.path("key_id")
    if not await control.keyring.revoke(key_id):
        raise KeyNotFound(f"there is no key {key_id}", key_id=key_id)
    log.info("key.revoked", key_id=key_id, by=call.identity.id)
    return Reply(status=HTTPStatus.NO_CONTENT)


async def make_enroll_token(control: Control, call: Call) -> Reply:
    wanted = call.taking(EnrollTokenRequest)
    made = await control.keyring.make_token(ttl_s=wanted.ttl_secs, name=wanted.name)
    log.info("enroll.prepared", expires_at=made.expires_at, by=call.identity.id)
    return Reply(made, HTTPStatus.CREATED)


async def remove_agent(control: Control, call: Call) -> Reply:
    """Forget an agent, by id or name: its link is closed and its jobs have failed."""
    wanted = call.path("agent_id")
    async with control.ledger.change() as change:
        record = await agents.get(change.conn, wanted) or await agents.named(change.conn, wanted)
        if record is None:
            raise AgentNotFound(f"there is no agent {wanted}", agent_id=wanted)
        for job in await jobs.in_states(change.conn, LIVE, agent_id=record.id):
            await change.move(
                job.id, JobState.FAILED, error=AgentGone("its agent was removed by an operator")
            )
        await agents.remove(change.conn, record.id)
        removed = Act(what="agent.removed", agent_id=record.id, outcome=record.name)
        await audit.record(change.conn, removed, now_s=change.now_s)
    link = control.links.find(record.id)
    if link is not None:
        link.close(LinkRefused("this agent was removed by an operator"), cause="removed")
    log.info("agent.removed", agent_id=record.id, name=record.name, by=call.identity.id)
    return Reply(status=HTTPStatus.NO_CONTENT)
