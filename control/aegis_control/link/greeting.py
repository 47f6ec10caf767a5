"""How a link begins: challenge, the agent's signed `hello`, and what both sides then reconcile."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.control_link import HeldJob, Hello
from aegis_protocol.failures.agent import VersionMismatch
from aegis_protocol.failures.http import LinkRefused
from aegis_protocol.signing import b64, link_statement, unb64, verified
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.jobs import Jobs
from aegis_control.link.lacking import settle_lacking
from aegis_control.link.linked import facts_of
from aegis_control.link.reconcile import Reconciliation, reconcile
from aegis_control.log import get_logger
from aegis_control.membership import refusal
from aegis_control.store import agent_links, agents, audit, jobs, sessions
from aegis_control.store.agents import AgentRecord
from aegis_control.store.audit import Act
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE
from aegis_control.store.locks import Lock, locked

log = get_logger("link")

_CLOCK_SKEW_S = 5.0


async def authenticate(
    database: Database, hello: Hello, *, nonce: str, base_url: str
) -> AgentRecord:
    """
    Return the agent that says `hello`.

    Raises VersionMismatch, LinkRefused, AgentRevoked.
    """
    async with database.read() as conn:
        record = await agents.get(conn, hello.agent_id)
    if record is None:
        raise LinkRefused("this agent is not enrolled here", agent_id=hello.agent_id)
    if not hmac.compare_digest(b64(record.public_key), hello.public_key):
        raise LinkRefused("this is not the key that the agent enrolled", agent_id=hello.agent_id)
    # before the signature, whose words may be others; a stranger is one whatever version it speaks
    if hello.protocol != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the agent speaks version {hello.protocol}, control {PROTOCOL_VERSION}",
            agent=hello.protocol,
            control=PROTOCOL_VERSION,
        )
    try:
        signature = unb64(hello.signature)
    except ValueError as exc:
        raise LinkRefused("the signature is not base64url", agent_id=hello.agent_id) from exc
    if not verified(record.public_key, signature, link_statement(nonce, base_url)):
        raise LinkRefused(
            "the signature is not the enrolled key's over this challenge", agent_id=hello.agent_id
        )
    revoked = refusal(record)
    if revoked is not None:  # said only to who has the key
        raise revoked
    skew_s = hello.clock - time.time()
    if abs(skew_s) > _CLOCK_SKEW_S:
        log.warning("agent.clock_skewed", agent_id=hello.agent_id, skew_s=round(skew_s, 1))
    return record


@dataclass(frozen=True)
class Begun:
    """record: the agent as it is now. alone: no older link of it was up."""

    record: AgentRecord
    epoch: int
    alone: bool


async def begin(database: Database, record: AgentRecord, hello: Hello) -> Begun:
    """
    Keep what the agent says of itself. Its link's epoch is one higher than that of the last.

    Raises LinkRefused when it was removed in this moment.
    """
    async with database.write() as conn:
        if hello.name != record.name:
            await locked(conn, Lock.AGENT_NAMES)
            if await agents.named(conn, hello.name) is None:
                await agents.rename(conn, record.id, hello.name)
            else:
                log.warning("agent.name_taken", agent_id=record.id, name=hello.name)
        epoch = await agents.begin_link(conn, record.id, hello, now_s=time.time())
        if hello.quarantined is not None:
            await quarantine(conn, record.id, hello.quarantined, resets=hello.resets)
        now = await agents.get(conn, record.id)
        refused = refusal(now)
        if refused is not None:
            raise refused
        alone = await agent_links.is_over(conn, record.id)
        if epoch is not None:
            facts = facts_of(hello.boards, frozenset(hello.warm_projects), hello.paused, False)
            await agent_links.begin(conn, record.id, database.replica_id, epoch, facts)
            await tell(conn, "link", record.id)
    if epoch is None or now is None:
        raise LinkRefused("this agent was removed", agent_id=hello.agent_id)
    return Begun(now, epoch, alone)


async def settle(
    ledger: Jobs,
    agent_id: str,
    held: Sequence[HeldJob],
    *,
    waited_for: Callable[[str], bool],
) -> Reconciliation:
    """
    Bring the store in line with what the agent has, and return what the agent must end.

    waited_for  see `settle_lacking`
    """
    async with ledger.change() as change:
        known = {job.id: job for job in await jobs.in_states(change.conn, LIVE, agent_id=agent_id)}
        found = reconcile(agent_id, held, known)
        for job_id, to, error in found.moves:
            await change.move(job_id, to, error=error)
        for have in held:
            if have.sessions is not None and have.job_id in known:
                await sessions.only(
                    change.conn, have.job_id, agent_id, have.sessions, now_s=change.now_s
                )
        for job_id in found.gone:
            await settle_lacking(change, known[job_id], waited_for=waited_for(job_id))
    if found.over or found.moves or found.gone:
        log.info(
            "agent.reconciled",
            agent_id=agent_id,
            over=len(found.over),
            moved=len(found.moves),
            gone=len(found.gone),
        )
    return found


async def quarantine(conn: AsyncConnection, agent_id: str, reason: str, *, resets: int) -> None:
    """Keep that an agent took itself out of service, unless it was reset since."""
    if not await agents.quarantined_itself(conn, agent_id, reason, resets=resets):
        return
    log.warning("agent.quarantined", agent_id=agent_id, reason=reason)
    act = Act(what="agent.quarantined", who=agent_id, agent_id=agent_id, facts={"reason": reason})
    await audit.record(conn, act, now_s=time.time())
