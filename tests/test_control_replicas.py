"""Several controls on one PostgreSQL: a client, its agent and its events on different ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aegis_control.audit_check import ChainCheck
from aegis_control.sealing import Seal, SealWrong
from aegis_control.shared_secrets import SecretsDiffer, agree
from aegis_control.store import agent_links, clock, replicas
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from aegis_protocol.audit import AuditList, AuditSeal
from aegis_protocol.control_link import JobCancel, JobMoved, JobOffer, SignalCandidate, Status
from aegis_protocol.events import Answer, Assigned, Candidate, Closed, State
from aegis_protocol.fleet_events import AgentOffline, AgentOnline, BoardChanged, TaskAvailable
from aegis_protocol.states import JobState
from control_fixtures import Bench, FakeAgent, bench, board, key_of, link_of
from databases import postgres, postgres_url
from fleet_reader import listening
from sqlalchemy import text
from waiting import until

__all__ = ["postgres", "postgres_url"]

SEAL = "one seal key for all of the replicas here"
PUBLIC = "http://aegis.test"


@asynccontextmanager
async def replicas_of(
    folder: Path, url: str, *, count: int = 2, **settings: Any
) -> AsyncIterator[list[Bench]]:
    """Controls on one database, each with a state directory of its own."""
    given = {"database_url": url, "seal_key": SEAL, "public_base_url": PUBLIC} | settings
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(bench(folder / f"state-{number}", **given))
            for number in range(count)
        ]


async def linked(replica: Bench, agent: FakeAgent, *jobs: Any) -> None:
    """Link the agent up with this replica."""
    agent.at = replica.at
    await agent.link(*jobs)


async def state_of(replica: Bench, job_id: str) -> JobState:
    """The job's state, without its client having asked."""
    return (await replica.served.control.ledger.get(job_id)).state


async def sees(replica: Bench, agent: FakeAgent, state: str = "online") -> None:
    """Wait until this replica knows the agent in that state."""

    async def known() -> bool:
        client = await replica.client_of(Role.VIEWER)
        rows = (await client.ask("GET", "/agents")).body["agents"]
        return any(row["id"] == agent.id and row["state"] == state for row in rows)

    async with asyncio.timeout(10):
        while not await known():
            await asyncio.sleep(0.02)


async def test_a_client_its_agent_and_its_events_are_each_at_another_replica(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url, count=3) as (a, b, c):
        agent = await a.agent()
        await sees(b, agent)
        key = await key_of(b.served, Role.FLASHER)
        asking, listening = b.client(key), c.client(key)
        grant = await asking.granted()
        async with listening.events(grant.job_id) as events:
            assert (await events.until(Assigned)).agent_id == agent.id
            assert (await asking.offer(grant)).status == 202
            offer = await agent.next(JobOffer)
            await agent.answer(offer)
            assert (await events.until(Answer)).jti == offer.jti
            await agent.accept(offer)
            await events.until(State, lambda state: state.state is JobState.RUNNING)
            candidate = {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0}
            path = f"/signaling/{grant.job_id}/candidate"
            assert (await listening.ask("POST", path, candidate)).status == 204
            assert (await agent.next(SignalCandidate)).candidate == "candidate:1"
            await agent.send(
                SignalCandidate(job_id=offer.job_id, jti=offer.jti, candidate="candidate:2")
            )
            assert (await events.until(Candidate)).candidate == "candidate:2"
            canceling = asyncio.create_task(listening.ask("DELETE", f"/jobs/{grant.job_id}"))
            cancel = await agent.next(JobCancel)
            await agent.send(JobMoved(job_id=cancel.job_id, state=JobState.CANCELED))
            assert (await canceling).body["state"] == "canceled"
            await events.until(Closed)


async def test_a_job_that_waits_is_placed_when_an_agent_comes_to_another_replica(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        client = b.client()
        agent = a.machine()
        await agent.enroll()
        answer = await client.request()
        assert answer.status == 202
        job_id = answer.body["job_id"]
        async with client.events(job_id) as events:
            await agent.link()
            assert (await events.until(Assigned)).agent_id == agent.id


async def test_a_newer_link_at_another_replica_ends_the_older_one(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        old = agent.socket
        await linked(b, agent)
        new, agent.socket = agent.socket, old
        assert await agent.refusal() == "link.superseded"
        agent.socket = new
        await until(lambda: a.served.control.links.find_own(agent.id) is None)
        assert link_of(b.served, agent.id).epoch == 2
        await sees(a, agent)
        assert a.served.control.links.down_s(agent.id) == 0


async def test_what_an_older_link_says_is_refused_before_anybody_noticed(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        client = a.client()
        grant = await client.granted()
        assert (await client.offer(grant)).status == 202
        offer = await agent.next(JobOffer)
        database = b.served.control.database
        async with database.write() as conn:  # and no word of it
            await agent_links.begin(conn, agent.id, database.replica_id, 9, {})
        await agent.accept(offer)
        assert await agent.refusal() == "link.superseded"
        assert (await client.job(grant.job_id))["state"] == "assigned"


async def test_what_an_agent_says_of_itself_is_known_everywhere(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent(boards=(board("b1"),))
        await sees(b, agent)
        client = b.client()
        assert (await client.ask("GET", "/boards")).body["boards"][0]["board"]["id"] == "b1"
        await agent.send(Status(paused="disk 96 %"))
        await sees(b, agent, "paused")
        answer = await client.request()
        assert answer.body["reasons"][0]["code"] == "agent.paused"


async def test_one_tick_decides_at_a_time_and_no_slot_is_given_twice(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url, count=3) as benches:
        agent = await benches[0].agent(slots=4, cpu_cores=64.0, memory_mb=65_536)
        for replica in benches:
            await sees(replica, agent)
        clients = [await replica.client_of(Role.BUILDER) for replica in benches]
        answers = await asyncio.gather(*(clients[n % 3].request() for n in range(24)))
        states = sorted(answer.body["state"] for answer in answers)
        assert states == ["assigned"] * 4 + ["pending"] * 20


async def test_a_client_that_listens_at_one_replica_counts_at_the_others(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url, absent_after_s=2.0) as (a, b):
        client = a.client()
        kept = (await client.request()).body["job_id"]
        async with b.client().events(kept):
            gone = (await client.request()).body["job_id"]  # of the two the one that came later
            async with asyncio.timeout(20):
                while (await state_of(a, gone)) is not JobState.EXPIRED:
                    await asyncio.sleep(0.05)
            assert await state_of(a, kept) is JobState.PENDING


async def test_a_replica_that_says_nothing_is_buried_and_its_agents_clients_are_told(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        client = a.client()
        grant = await a.running(client, agent)
        database = b.served.control.database
        async with database.write() as conn:  # as if the agent were at a third one, long dead
            now_s = await clock.now_s(conn)
            await replicas.join(
                conn,
                "third",
                name="third",
                version="1",
                address=PUBLIC,
                alone=False,
                now_s=now_s - 60,
            )
            await agent_links.begin(conn, agent.id, "third", 9, {})
        async with client.events(grant.job_id) as events:
            await b.served.control.replica.beat()
            closed = await events.until(Closed)
        assert closed.error is not None and closed.error.code == "agent.gone"
        await until(lambda: b.served.control.links.down_s(agent.id) >= 60)
        async with database.read() as conn:
            now_s = await clock.now_s(conn)
            known = {record.id for record in await replicas.every(conn, now_s=now_s)}
        assert known == {a.served.control.replica.id, b.served.control.replica.id}


async def test_a_replica_that_stood_still_for_too_long_has_its_agents_link_up_anew(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        async with b.served.control.database.write() as conn:
            await replicas.leave(conn, a.served.control.replica.id, now_s=1.0)
        assert await agent.refusal() == "control.unavailable"
        await linked(a, agent)
        await sees(b, agent)


async def test_a_frame_waits_for_an_agent_that_changes_its_replica(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url, count=3) as (a, b, c):
        agent = await a.agent()
        await sees(c, agent)
        client = c.client()
        grant = await client.granted()
        database = c.served.control.database
        async with database.write() as conn:  # its link is at one that will not take it
            await agent_links.begin(conn, agent.id, "dead", 1, {})
            await replicas.join(
                conn,
                "dead",
                name="dead",
                version="1",
                address=PUBLIC,
                alone=False,
                now_s=await clock.now_s(conn),
            )
        await agent.leave()
        await c.served.control.others.look_at_all()
        assert (await client.offer(grant)).status == 202
        await linked(b, agent)
        assert (await agent.next(JobOffer)).jti


async def test_words_go_on_after_the_listening_connection_was_cut(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        await sees(b, agent)
        async with a.served.control.database.write() as conn:
            cut = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )
            assert len((await conn.execute(text(cut))).all()) == 2
        await agent.send(Status(paused="while nobody heard"))
        await sees(b, agent, "paused")
        await agent.send(Status())
        await sees(b, agent)


async def test_a_replica_that_leaves_takes_its_agents_links_along(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        await sees(b, agent)
        await a.served.control.replica.leave()
        await sees(b, agent, "disconnected")


async def test_an_agent_that_is_removed_at_one_replica_loses_its_link_at_another(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        agent = await a.agent()
        operator = await b.client_of(Role.OPERATOR)
        assert (await operator.ask("DELETE", f"/services/agents/{agent.id}")).status == 204
        assert await agent.refusal() == "link.refused"


async def test_a_key_made_at_one_replica_and_its_grants_count_at_all(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        keys = [
            await replica.client(None).ask("GET", "/.well-known/jwks.json") for replica in (a, b)
        ]
        assert keys[0].body == keys[1].body
        client = b.client(await key_of(a.served, Role.BUILDER))
        assert (await client.ask("GET", "/whoami")).status == 200


async def test_of_replicas_that_start_at_the_same_moment_one_makes_the_first_operators_key(
    tmp: Path, postgres_url: str
) -> None:
    async def started(number: int) -> bool:
        state = tmp / f"at-once-{number}"
        given = {"database_url": postgres_url, "seal_key": SEAL, "public_base_url": PUBLIC}
        async with bench(state, **given):
            return (state / "operator.key").exists()

    assert sorted(await asyncio.gather(*(started(n) for n in range(3)))) == [False, False, True]


async def test_without_a_seal_key_a_second_replica_is_refused_and_told_why(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url, count=1, seal_key=None):
        with pytest.raises(SecretsDiffer) as refused:
            async with bench(tmp / "other", database_url=postgres_url):
                pass
        assert "AEGIS_SEAL_KEY" in refused.value.remedy


async def test_the_seal_key_can_be_changed_and_set_afterwards(postgres_url: str) -> None:
    old, new, wrong = "o" * 32, "n" * 32, "w" * 32
    async with Database.open(postgres_url) as database:
        assert await agree(database, None, "pepper", b"first") == b"first"
        assert await agree(database, Seal([old]), "pepper", b"first") == b"first"
        assert await agree(database, Seal([old]), "pepper", b"another") == b"first"
        with pytest.raises(SealWrong):
            await agree(database, Seal([wrong]), "pepper", b"another")
        assert await agree(database, Seal([new, old]), "pepper", b"another") == b"first"
        assert await agree(database, Seal([new]), "pepper", b"another") == b"first"
        assert await agree(database, Seal([new]), "issuer", b"other name") == b"other name"


async def test_everybody_hears_of_everything_and_resumes_wherever_it_comes_back(
    tmp: Path, postgres_url: str
) -> None:
    """Events told at three replicas; a reader that is at another one each time it comes back."""
    async with replicas_of(tmp, postgres_url, count=3) as all_of_them:
        key = await key_of(all_of_them[0].served, Role.BUILDER)
        clients = [replica.client(key) for replica in all_of_them]
        async with listening(clients[0], "?types=task_available") as reader:
            await reader.current()
            cursor = reader.cursor
        made: list[str] = []
        told: list[int] = []
        seen: list[str] = []
        for number in range(6):
            answers = await asyncio.gather(*(client.request() for client in clients))
            made += [answer.body["job_id"] for answer in answers]
            at = clients[(number + 1) % 3]
            async with listening(at, "?types=task_available", after=cursor) as reader:
                late = await clients[number % 3].request()  # while it reads
                made.append(late.body["job_id"])
                for _ in range(2 if number < 5 else len(made) - len(seen)):
                    seen.append((await reader.until(TaskAvailable)).job_id)
                told += reader.told
                cursor = reader.cursor
        assert sorted(seen) == sorted(made)
        assert told == sorted(set(told))


async def test_a_ticket_of_one_replica_opens_a_stream_at_another_once(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        answer = await a.client(await key_of(a.served, Role.VIEWER)).ask(
            "POST", "/events/ticket", {}
        )
        path = f"?ticket={answer.body['ticket']}"
        async with listening(b.client(None), path) as reader:
            await reader.current()
            agent = await a.agent(boards=(board("p4-1"),))
            assert (await reader.until(AgentOnline)).agent_id == agent.id
            assert (await reader.until(BoardChanged)).board.id == "p4-1"
            await a.served.control.replica.leave()
            assert (await reader.until(AgentOffline)).agent_id == agent.id
        for replica in (a, b):
            again = await replica.client(None).ask("GET", f"/events{path}")
            assert again.error.code == "auth.ticket_wrong"


async def test_a_key_that_is_revoked_at_one_replica_loses_its_streams_at_another(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, b):
        key = await key_of(a.served, Role.BUILDER)
        operator = await a.client_of(Role.OPERATOR)
        async with listening(b.client(key)) as reader:
            await reader.current()
            await operator.ask("DELETE", f"/services/keys/{key.split('_')[2]}")
            assert await reader.next() is None


async def test_replicas_seal_one_audit_together(tmp: Path, postgres_url: str) -> None:
    async with replicas_of(tmp, postgres_url, count=3) as all_of_them:
        clients = [await replica.client_of(Role.OPERATOR) for replica in all_of_them]
        for _ in range(3):
            await asyncio.gather(*(client.request() for client in clients))
        seal = AuditSeal.model_validate((await clients[0].ask("GET", "/services/audit/seal")).body)
        found = AuditList.model_validate(
            (await clients[1].ask("GET", "/services/audit?after=0&limit=1000")).body
        )
        check = ChainCheck(seal.checkpoint, seal.heads, {key.kid: key.x for key in seal.keys})
        for record in found.records:
            check.take(record)
        assert check.finish() == ()
        assert [r.what for r in found.records].count("job.created") == 9
