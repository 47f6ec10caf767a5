"""New jobs that are asked for at the same time: one tick of the scheduler makes them all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from aegis_control.identity import Identity
from aegis_control.jobs import Change
from aegis_control.new_job import Granted, NewJob
from aegis_control.store import jobs as kept_jobs
from aegis_control.store.jobs import JobRecord
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import Unavailable
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT, Answered, Bench, bench, board, key_of, link_of
from databases import database_kind, database_url, postgres
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]


async def together(b: Bench, *asking: Awaitable[Answered]) -> list[Answered]:
    """What is answered when all of this arrives before one tick."""
    placement = b.served.control.placement
    async with b.served.control.database.alone("placement"):
        requests = [asyncio.ensure_future(one) for one in asking]
        await until(lambda: len(placement._asked) == len(asking))
    return list(await asyncio.gather(*requests))


async def test_those_who_ask_at_once_are_served_by_one_transaction(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent("a", slots=3)
        await b.agent("b", slots=3)
        clients = [await b.client_of(Role.BUILDER) for _ in range(8)]
        answers = await together(b, *(client.request() for client in clients))
        assert sorted(a.status for a in answers) == [200] * 6 + [202] * 2
        jobs = [
            await client.job(answer.body["job_id"])
            for client, answer in zip(clients, answers, strict=True)
        ]
        assert len({job["created_at"] for job in jobs}) == 1
        agents = [job["agent_id"] for job in jobs if job["state"] == "assigned"]
        assert sorted(map(agents.count, set(agents))) == [3, 3]


async def test_one_that_is_refused_spoils_no_other(tmp: Path, database_url: str) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent(slots=4)
        client, key = b.client(), {"Idempotency-Key": "once"}
        first, other, free = await together(
            b,
            client.request(headers=key),
            client.request(headers=key, cpu_cores=2),
            client.request(),
        )
        assert (first.status, free.status) == (200, 200)
        assert (other.status, other.error.code) == (409, "request.idempotency_conflict")


async def test_a_repeat_that_comes_at_once_is_the_same_job(tmp: Path, database_url: str) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent(slots=4)
        client, key = b.client(), {"Idempotency-Key": "once"}
        answers = await together(b, *(client.request(headers=key) for _ in range(3)))
        assert [answer.status for answer in answers] == [200] * 3
        assert len({answer.body["job_id"] for answer in answers}) == 1
        assert len({answer.body["grant"] for answer in answers}) == 3


async def test_limits_count_what_is_asked_at_the_same_time(tmp: Path, database_url: str) -> None:
    async with bench(tmp / "s", database_url=database_url, max_waiting_jobs=2) as b:
        await b.agent(slots=8)
        two = await b.client_of(Role.BUILDER, jobs=("1",))
        answers = await together(b, *(two.request() for _ in range(4)))
        assert sorted(answer.status for answer in answers) == [200, 202, 429, 429]
        (waits,) = (answer for answer in answers if answer.status == 202)
        assert [reason["code"] for reason in waits.body["reasons"]] == ["jobs.at_limit"]


async def test_two_who_want_the_same_board_at_once_get_it_one_after_the_other(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent(slots=4, boards=(board("p4-1"),))
        client = b.client()
        wish = [{"id": "p4-1"}]
        answers = await together(b, *(client.request(boards=wish) for _ in range(2)))
        assert sorted(answer.status for answer in answers) == [200, 202]
        (has,) = (answer.body for answer in answers if answer.status == 200)
        (waits,) = (answer.body for answer in answers if answer.status == 202)
        assert waits["reasons"][0]["code"] == "board.held"
        await client.ask("DELETE", f"/jobs/{has['job_id']}")
        await client.until_state(waits["job_id"], "assigned")


async def test_one_that_breaks_the_transaction_is_alone_in_failing(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent(slots=4)
        client = b.client()

        async def broken(change: Change, job: JobRecord) -> Granted | None:
            raise ZeroDivisionError(job.id)

        me = Identity("mcp", Role.FLASHER)
        request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
        decision = await b.served.control.granting.decide(me, request)
        new = NewJob(me, request, decision, key=None, most_waiting=9, grant=broken)
        placement = b.served.control.placement
        async with b.served.control.database.alone("placement"):
            requests = [asyncio.ensure_future(client.request()) for _ in range(2)]
            asked = asyncio.ensure_future(placement.ask(new))
            await until(lambda: len(placement._asked) == 3)
        answers = await asyncio.gather(*requests)
        assert [answer.status for answer in answers] == [200, 200]
        with pytest.raises(ZeroDivisionError):
            await asked
        jobs = (await client.ask("GET", "/jobs")).body["jobs"]
        assert len(jobs) == 2
        assert (await client.request()).status == 200


async def test_who_waited_in_vain_for_the_tick_leaves_no_job_behind(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url, request_timeout_s=2) as b:
        await b.agent(slots=4)
        client, placement = b.client(), b.served.control.placement
        async with b.served.control.database.alone("placement"):
            answer = await client.request()
            assert (answer.status, answer.error.code) == (503, "control.unavailable")
            assert not placement._asked
        granted = await client.granted()
        jobs = (await client.ask("GET", "/jobs")).body["jobs"]
        assert [job["id"] for job in jobs] == [granted.job_id]


async def test_what_a_transaction_that_broke_had_granted_is_not_given_out(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent = await b.agent(slots=2)
        link, placement = link_of(b.served, agent.id), b.served.control.placement
        client = b.client()
        me = Identity("mcp", Role.FLASHER)
        request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
        decision = await b.served.control.granting.decide(me, request)

        async def broken(change: Change, job: JobRecord) -> Granted | None:
            link.paused = "went away meanwhile"
            b.served.control.links.changed()
            raise ZeroDivisionError(job.id)

        new = NewJob(me, request, decision, key=None, most_waiting=9, grant=broken)
        async with b.served.control.database.alone("placement"):
            asking = asyncio.ensure_future(client.request())
            await until(lambda: len(placement._asked) == 1)
            asked = asyncio.ensure_future(placement.ask(new))
            await until(lambda: len(placement._asked) == 2)
        answer = await asking
        assert (answer.status, answer.body["state"]) == (202, "pending")
        assert (await asked).state is JobState.PENDING


async def test_a_key_that_is_revoked_while_its_request_waits_gets_no_job(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        await b.agent(slots=4)
        key = await key_of(b.served, Role.BUILDER)
        client, placement = b.client(key), b.served.control.placement
        async with b.served.control.database.alone("placement"):
            asking = asyncio.ensure_future(client.request())
            await until(lambda: len(placement._asked) == 1)
            await b.served.control.revoking.key(key.split("_")[2], "it leaked")
        answer = await asking
        assert (answer.status, answer.error.code) == (401, "auth.key_wrong")
        async with b.served.control.database.read() as conn:
            assert await kept_jobs.recent(conn, None, limit=9) == ()
        assert (await b.client().granted()).state is JobState.ASSIGNED


async def test_who_asks_when_the_last_tick_is_over_is_told_at_once(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        control = b.served.control
        me = Identity("mcp", Role.FLASHER)
        request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
        decision = await control.granting.decide(me, request)

        async def never(change: Change, job: JobRecord) -> Granted | None:
            raise AssertionError(job.id)

        new = NewJob(me, request, decision, key=None, most_waiting=9, grant=never)
        control.stop()
        before = asyncio.ensure_future(control.placement.ask(new))
        with pytest.raises(Unavailable):
            await before
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await control.placement.ask(new)
