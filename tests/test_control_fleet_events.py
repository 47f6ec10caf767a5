"""`GET /events` and its tickets, over real HTTP: what is told, to whom, and nothing twice."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aegis_control import announcements
from aegis_control.feed import BATCH, KEPT, Feed
from aegis_control.http import sse
from aegis_control.store import announcing, fleet_events, tables
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from aegis_protocol.control_link import BoardsChanged, JobMoved, Status
from aegis_protocol.events import Answer, Connected, KeepAlive, Reset
from aegis_protocol.fleet_events import (
    FLEET_TYPES,
    AgentOffline,
    AgentOnline,
    BoardChanged,
    JobStateChanged,
    LeaseStateChanged,
    Task,
    TaskAssigned,
    TaskAvailable,
)
from aegis_protocol.states import JobState
from control_fixtures import Bench, Client, bench, board
from databases import database_kind, database_url, postgres
from fleet_reader import WITHIN_S, listening
from sqlalchemy import update
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores


async def refusal(client: Client, path: str, **headers: str) -> Any:
    answer = await client.ask("GET", path, headers=headers)
    return answer.status, answer.error.code


async def waiting_job(client: Client, **fields: Any) -> str:
    """A job that no agent is there for."""
    answer = await client.request(**fields)
    assert answer.status == 202, answer.body
    job_id: str = answer.body["job_id"]
    return job_id


async def test_a_job_is_told_from_its_making_to_its_end(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        async with listening(client) as stream:
            assert isinstance(await stream.next(), Connected)
            assert await stream.current() == []
            job_id = await waiting_job(client, target="esp32p4", project_key="blink")
            waits = await stream.until(JobStateChanged)
            assert (waits.job_id, waits.state, waits.identity) == (job_id, "pending", "mcp")
            short = await stream.until(TaskAvailable)
            assert (short.job_id, short.target, short.project_key) == (job_id, "esp32p4", "blink")
            whole = await stream.until(Task)
            assert whole.job.model_dump(mode="json")["id"] == job_id
            why = await stream.until(JobStateChanged, lambda e: bool(e.reasons))
            assert [reason.code for reason in why.reasons] == ["agent.none"]

            agent = await b.agent("bench")
            placed = await stream.until(TaskAssigned)
            assert (placed.job_id, placed.agent_id, placed.agent_name) == (
                job_id,
                agent.id,
                "bench",
            )
            await client.ask("DELETE", f"/jobs/{job_id}")
            ended = await stream.until(JobStateChanged, lambda e: e.state is JobState.CANCELED)
            assert ended.error is not None and ended.error.code == "job.canceled"
            assert stream.told == sorted(set(stream.told))


async def test_a_stream_that_begins_afresh_says_what_is_true_now(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, agent = b.client(), await b.agent(boards=(board("p4-1"), board("p4-2")))
        running = await b.running(client, agent, boards=[{"id": "p4-1"}])
        waiting = await waiting_job(client, agent_id=agent.name, cpu_cores=64)
        async with listening(client) as stream:
            now = [event.model_dump(mode="json") for event in await stream.current()]
            numbers = [number for number, event in stream.seen if event.type in FLEET_TYPES]
        assert set(numbers) == {None}
        assert [event["type"] for event in now] == [
            "agent_online", "board_changed", "board_changed",
            "job_state", "task_available", "task", "job_state",
        ]  # fmt: skip
        assert (now[0]["agent_id"], now[0]["state"]) == (agent.id, "online")
        assert [(e["board"]["id"], e["board"]["state"]) for e in now[1:3]] == [
            ("p4-1", "held"), ("p4-2", "free")
        ]  # fmt: skip
        assert (now[3]["job_id"], now[3]["state"]) == (waiting, "pending")
        assert (now[6]["job_id"], now[6]["state"]) == (running.job_id, "running")


async def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        made: list[str] = []
        told: list[int] = []
        seen: list[str] = []
        async with listening(client, "?types=task_available") as stream:
            await stream.current()
            cursor = stream.cursor
        for round_number in range(4):
            for _ in range(5):
                made.append(await waiting_job(client))
            async with listening(client, "?types=task_available", after=cursor) as stream:
                assert isinstance(await stream.next(), Connected)
                # leaves in the middle of what there is; the last time it reads all of it
                for _ in range(3 if round_number < 3 else len(made) - len(seen)):
                    seen.append((await stream.until(TaskAvailable)).job_id)
                told += stream.told
                cursor = stream.cursor
        assert seen == made
        assert told == sorted(set(told))


async def test_a_restart_of_control_leaves_no_gap_and_no_double(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        async with listening(client) as stream:
            await stream.current()
            first = await waiting_job(client)
            await stream.until(TaskAvailable, lambda e: e.job_id == first)
        cursor = stream.cursor
        await waiting_job(client)  # while nobody listens, and before the restart
    async with bench(tmp / "s") as b:
        client = b.client()
        third = await waiting_job(client)
        async with listening(client, after=cursor) as stream:
            await stream.until(TaskAvailable, lambda e: e.job_id == third)
        assert stream.told == sorted(set(stream.told))
        async with b.served.control.database.read() as conn:
            kept = await fleet_events.after(conn, cursor, limit=1000)
        assert stream.told == [event.id for event in kept if event.id <= stream.cursor]


async def test_anothers_jobs_are_seen_by_operators_alone(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        mine, other = await b.client_of(Role.BUILDER), await b.client_of(Role.FLASHER)
        operator = await b.client_of(Role.OPERATOR)
        async with listening(mine) as own, listening(operator) as all_of_them:
            await own.current()
            await all_of_them.current()
            theirs = await waiting_job(other, project_key="secret-project")
            ours = await waiting_job(mine)
            assert (await own.until(Task)).job.id == ours
            assert (await all_of_them.until(Task)).job.id == theirs
            assert (await all_of_them.until(Task)).job.id == ours
        text = " ".join(event.model_dump_json() for _, event in own.seen)
        assert theirs not in text and "secret-project" not in text
        async with listening(mine) as again:
            await again.current()
        assert theirs not in " ".join(event.model_dump_json() for _, event in again.seen)


@pytest.mark.parametrize(
    ("query", "headers", "wanted"),
    [
        ("?types=task_available", {}, ["p4", "c3", "none"]),
        ("?types=task_available&targets=esp32p4", {}, ["p4", "none"]),
        ("?types=task_available", {"X-Capabilities": "esp32p4, esp32"}, ["p4", "none"]),
        ("?types=task_available&project_key=blink", {}, ["c3"]),
        ("?types=task_available&project_key=global", {}, ["p4", "none"]),
        ("?types=task_available", {"X-Codebases": "blink,global"}, ["p4", "c3", "none"]),
        ("?types=task_available&targets=esp32p4&project_key=blink", {}, []),
    ],
)
async def test_a_reader_gets_only_what_it_asks_for(
    tmp: Path, query: str, headers: dict[str, str], wanted: list[str]
) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        await b.agent(targets=("esp32p4", "esp32c3"), slots=0)
        async with listening(client, query, headers=headers) as stream:
            assert await stream.current() == []
            jobs = {
                "p4": await waiting_job(client, target="esp32p4"),
                "c3": await waiting_job(client, target="esp32c3", project_key="blink"),
                "none": await waiting_job(client),
            }
            names = {job_id: name for name, job_id in jobs.items()}
            for _ in wanted:
                await stream.next()
        kinds = {event.type for number, event in stream.seen if event.type in FLEET_TYPES}
        assert kinds <= {"task_available"}
        assert [names[e.job_id] for _, e in stream.seen if isinstance(e, TaskAvailable)] == wanted


@pytest.mark.parametrize(
    ("query", "headers", "wrong"),
    [
        ("?types=task_availble", {}, "types"),
        ("?targets=a%0ab", {}, "targets"),
        ("?project_key=" + ",".join(f"p{n}" for n in range(65)), {}, "project_key"),
        ("", {"X-Capabilities": "es p"}, "X-Capabilities"),
        ("", {"Last-Event-ID": "-1"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1" * 19}, "Last-Event-ID"),
    ],
)
async def test_a_wish_that_is_none_is_named(
    tmp: Path, query: str, headers: dict[str, str], wrong: str
) -> None:
    async with bench(tmp / "s") as b:
        refused = await b.client().ask("GET", f"/events{query}", headers=headers)
        assert (refused.status, refused.error.code) == (400, "request.invalid")
        assert refused.error.facts["field"] == wrong
        assert b.served.control.streams.count == 0


async def test_a_cursor_that_is_too_old_is_reset_and_told_what_is_true(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, control = b.client(), b.served.control
        job_id = await waiting_job(client)
        for _ in range(3):
            await waiting_job(client)
        async with control.database.write() as conn:
            await conn.execute(update(tables.fleet_events).values(at=1))
            assert await fleet_events.forget(conn, before_s=2) > 3
        feed = control.feed
        feed._told, feed._since = [], feed._head  # as after a restart
        for cursor in (1, 10_000):  # the other is of another store
            async with listening(client, after=cursor) as stream:
                assert isinstance(await stream.next(), Connected)
                assert isinstance(await stream.next(), Reset)
                now = await stream.current()
                assert job_id in [e.job_id for e in now if isinstance(e, JobStateChanged)]
                head = stream.cursor
                news = await waiting_job(client)
                await stream.until(TaskAvailable, lambda e, news=news: e.job_id == news)  # type: ignore[misc]
                assert min(stream.told) > head


async def test_a_quiet_stream_keeps_its_cursor_young(tmp: Path) -> None:
    async with bench(tmp / "s", keepalive_s=0.05) as b:
        client = b.client()
        async with listening(client, "?types=board_changed") as stream:
            await stream.until(KeepAlive)
            before = stream.cursor
            await waiting_job(client)
            async with asyncio.timeout(WITHIN_S):
                while stream.cursor == before:
                    await stream.until(KeepAlive)
        async with b.served.control.database.read() as conn:
            _, newest = await fleet_events.bounds(conn)
        assert before < stream.cursor <= newest


async def ticket(client: Client, **body: Any) -> str:
    made = await client.ask("POST", "/events/ticket", body)
    assert made.status == 201, made.body
    text: str = made.body["ticket"]
    return text


async def test_a_ticket_opens_one_stream_once(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, nobody = await b.client_of(Role.VIEWER), b.client(None)
        text = await ticket(client)
        async with listening(nobody, f"?ticket={text}") as stream:
            await stream.current()
        assert await refusal(nobody, f"/events?ticket={text}") == (401, "auth.ticket_wrong")
        assert await refusal(nobody, "/events?ticket=aegis_tk_x") == (401, "auth.ticket_wrong")
        assert await refusal(nobody, "/events") == (401, "auth.key_missing")
        # nor does it open anything but a stream
        assert await refusal(nobody, f"/jobs?ticket={await ticket(client)}") == (
            401, "auth.key_missing"
        )  # fmt: skip


async def test_a_tickets_reader_sees_what_its_maker_may(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        maker, other = await b.client_of(Role.BUILDER), await b.client_of(Role.BUILDER)
        theirs, ours = await waiting_job(other), await waiting_job(maker)
        async with listening(b.client(None), f"?ticket={await ticket(maker)}") as stream:
            seen = [e.job_id for e in await stream.current() if isinstance(e, JobStateChanged)]
        assert seen == [ours] and theirs not in seen


async def test_a_ticket_for_a_job_opens_its_stream_and_no_other(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, nobody = b.client(), b.client(None)
        job_id, another = await waiting_job(client), await waiting_job(client)
        text = await ticket(client, job_id=job_id)
        for path in ("/events", f"/signaling/{another}/events"):
            assert (await refusal(nobody, f"{path}?ticket={text}"))[1] == "auth.ticket_wrong"
        url = f"{b.base_url}/signaling/{job_id}/events?ticket={text}"
        async with b.session.get(url) as answer:
            assert answer.status == 200
            assert (await answer.content.readline()).startswith(b"id: ")
        assert (await refusal(nobody, f"/signaling/{job_id}/events?ticket={text}"))[0] == 401
        stranger = await b.client_of(Role.FLASHER)
        asked = await stranger.ask("POST", "/events/ticket", {"job_id": job_id})
        assert asked.error.code == "job.not_found"


async def test_a_ticket_does_not_outlive_its_time_nor_its_key(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, nobody = await b.client_of(Role.VIEWER), b.client(None)
        late, orphan = await ticket(client), await ticket(client)
        async with b.served.control.database.write() as conn:
            digest = sha256(late.encode()).digest()
            found = await conn.execute(
                update(tables.event_tickets)
                .where(tables.event_tickets.c.digest == digest)
                .values(expires_at=1)
            )
            assert found.rowcount == 1
        assert (await refusal(nobody, f"/events?ticket={late}"))[1] == "auth.ticket_wrong"
        operator = await b.client_of(Role.OPERATOR)
        assert client.key is not None
        key_id = client.key.split("_")[2]
        assert (await operator.ask("DELETE", f"/services/keys/{key_id}")).status == 204
        assert (await refusal(nobody, f"/events?ticket={orphan}"))[1] == "auth.ticket_wrong"


async def test_no_secret_is_ever_in_what_is_told_or_kept(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, agent = await b.client_of(Role.OPERATOR), await b.agent()
        async with listening(client) as stream:
            await stream.current()
            grant = await b.running(client, agent)
            text = await ticket(client)
            await stream.until(JobStateChanged, lambda e: e.state is JobState.RUNNING)
        told = " ".join(event.model_dump_json() for _, event in stream.seen)
        assert client.key is not None
        assert not re.search(r"aegis_(sk|tk|et)_|eyJ", told)
        assert grant.grant not in told
        stored = b"".join(path.read_bytes() for path in (tmp / "s").glob("control.db*"))
        assert text.encode() not in stored


async def test_a_reader_that_stops_reading_is_cut_and_costs_nothing(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "WRITE_S", 0.3)
    async with bench(tmp / "s") as b:
        client, control = b.client(), b.served.control
        host, port = b.base_url.removeprefix("http://").split(":")
        for path in ("/events", f"/signaling/{await waiting_job(client)}/events"):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {client.key}\r\n\r\n".encode()
            )
            await writer.drain()
            assert b"200" in await reader.readline()
            transport = writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            await until(lambda: control.streams.count == 1, within_s=WITHIN_S)
            await flood(b, path, lambda: control.streams.count == 0)
            writer.close()
        async with listening(client) as stream:  # others are served as before
            await stream.current()


async def flood(b: Bench, path: str, done: Callable[[], bool]) -> None:
    """Tell more and more on `path`'s stream until `done`; 64 MiB at most."""
    database = b.served.control.database
    for n in range(64):
        if done():
            return
        async with database.write() as conn:
            for m in range(64):
                if path == "/events":
                    gone = AgentOffline(agent_id=f"ag-{n}-{m}", agent_name="x" * 16_000)
                    await announcing.announce(conn, announcing.Announcement(gone), now_s=1)
                else:
                    job_id = path.split("/")[2]
                    answer = Answer(job_id=job_id, jti="j", sdp="x" * 16_000, signature="s")
                    await announcing.tell_owner(conn, job_id, answer, now_s=1)
        await asyncio.sleep(0.05)
    await until(done, within_s=WITHIN_S)


async def test_streams_end_when_control_stops(tmp: Path) -> None:
    async with bench(tmp / "s") as b, listening(b.client()) as stream:
        await stream.current()
        b.served.control.stop()
        assert await stream.next() is None


async def test_one_key_has_a_bounded_number_of_streams(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_control.streams.MAX_STREAMS_PER_IDENTITY", 2)
    async with bench(tmp / "s") as b:
        client = b.client()
        async with listening(client) as one, listening(client) as two:
            await one.current()
            await two.current()
            refused = await client.ask("GET", "/events")
            assert (refused.status, refused.error.code) == (429, "request.rate_limited")
            async with listening(await b.client_of(Role.VIEWER)) as other:
                await other.current()
        await until(lambda: b.served.control.streams.count == 0, within_s=WITHIN_S)
        async with listening(client) as again:
            await again.current()


async def announce_one(database: Database, n: int) -> None:
    async with database.write() as conn:
        news = announcements.agent_offline(f"ag-{n}", "x")
        await announcing.announce(conn, news, now_s=1)


async def test_events_are_read_in_the_order_of_their_commits_and_none_is_skipped(
    database_url: str,
) -> None:
    """Many write at once while one reads by the ids alone."""
    async with Database.open(database_url) as database:
        seen: list[int] = []
        writing = True

        async def read() -> None:
            while True:
                more = writing
                async with database.read() as conn:
                    found = await fleet_events.after(conn, seen[-1] if seen else 0, limit=1000)
                seen.extend(event.id for event in found)
                if not more and not found:
                    return

        async def write(first: int) -> None:
            for n in range(first, first + 20):
                await announce_one(database, n)

        reading = asyncio.create_task(read())
        async with asyncio.timeout(60):
            await asyncio.gather(*(write(100 * k) for k in range(10)))
            writing = False
            await reading
        async with database.read() as conn:
            kept = [event.id for event in await fleet_events.after(conn, 0, limit=1000)]
        assert len(kept) == 200
        assert seen == kept


async def test_what_is_rolled_back_is_never_told(database_url: str) -> None:
    async with Database.open(database_url) as database:
        with pytest.raises(RuntimeError):
            async with database.write() as conn:
                news = announcements.agent_offline("ag-1", "x")
                await announcing.announce(conn, news, now_s=1)
                raise RuntimeError
        await announce_one(database, 2)
        async with database.read() as conn:
            (event,) = await fleet_events.after(conn, 0, limit=10)
        assert json.loads(event.data)["agent_id"] == "ag-2"


async def test_however_many_listen_the_store_is_read_once_per_change(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        feed, stopping = Feed(database), asyncio.Event()
        reads = up_to_date = 0
        read = database.read

        def counted() -> Any:
            nonlocal reads
            reads += 1
            return read()

        database.read = counted  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            group.create_task(feed.run(stopping))

            async def listen() -> list[int]:
                nonlocal up_to_date
                cursor, ids = 3, list[int]()
                with feed.listen() as changed:
                    while len(ids) < 10:
                        changed.clear()
                        news = await feed.after(cursor)
                        assert news is not None
                        ids += [told.id for told in news]
                        cursor = ids[-1] if ids else 3
                        if not news:
                            up_to_date += 1
                            await changed.wait()
                return ids

            for n in range(3):
                await announce_one(database, n)
            assert reads == 0  # nobody listens
            listeners = [group.create_task(listen()) for _ in range(200)]
            await until(lambda: feed._head == 3 and up_to_date >= 200)
            before = reads
            for n in range(10):
                await announce_one(database, n)
            async with asyncio.timeout(WITHIN_S):
                found = await asyncio.gather(*listeners)
            assert {tuple(ids) for ids in found} == {tuple(range(4, 14))}
            assert reads - before <= 40  # two for each change, with one that finds nothing
            stopping.set()
            feed.wake()


async def test_a_listener_far_behind_reads_the_store_and_one_too_far_is_told(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        feed, stopping = Feed(database), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(feed.run(stopping))
            with feed.listen():
                await until(lambda: feed._head == 0)
                for n in range(0, 2 * KEPT + 500, 500):
                    async with database.write() as conn:
                        for m in range(500):
                            news = announcements.agent_offline(f"ag-{n + m}", "x")
                            await announcing.announce(conn, news, now_s=1)
                total = n + 500
                await until(lambda: feed._head == total, within_s=WITHIN_S)
            assert len(feed._told) <= 2 * KEPT
            cursor, ids = 0, list[int]()
            while found := await feed.after(cursor):
                assert len(found) <= BATCH
                ids += [told.id for told in found]
                cursor = ids[-1]
            assert ids == list(range(1, total + 1))
            async with database.write() as conn:
                assert await fleet_events.forget(conn, before_s=2) == total - 1
            assert await feed.after(5) is None
            assert await feed.after(total + 5) is None
            assert await feed.after(total) == []
            stopping.set()
            feed.wake()


async def test_agents_are_told_as_they_come_change_and_go(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        operator = await b.client_of(Role.OPERATOR)
        query = "?types=agent_online,agent_offline"
        async with listening(b.client(), query) as stream:
            await stream.current()
            agent = await b.agent("lab-1", labels={"site": "lab1"})
            came = await stream.until(AgentOnline)
            assert (came.agent_id, came.agent_name, came.state) == (agent.id, "lab-1", "online")
            assert came.labels == {"site": "lab1"} and came.targets == ("esp32", "esp32p4")
            await agent.send(Status(paused="disk 96 %"))
            paused = await stream.until(AgentOnline)
            assert (paused.state, paused.reason) == ("paused", "disk 96 %")
            await operator.ask("POST", "/services/agents/lab-1/drain", {"reason": "new disk"})
            drained = await stream.until(AgentOnline)
            assert (drained.state, drained.reason) == ("draining", "new disk")
            await agent.leave()
            assert (await stream.until(AgentOffline)).agent_id == agent.id


async def test_boards_are_told_as_they_come_change_hands_and_go(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        async with listening(client, "?types=board_changed") as stream:
            await stream.current()

            async def told() -> tuple[str, str]:
                event = await stream.until(BoardChanged)
                assert event.agent_id == agent.id
                return event.board.id, event.board.state

            agent = await b.agent(boards=(board("p4-1"),))
            assert await told() == ("p4-1", "free")
            await agent.send(BoardsChanged(boards=(board("p4-1"), board("p4-2"))))
            assert await told() == ("p4-2", "free")
            grant = await b.running(client, agent, boards=[{"id": "p4-1"}])
            assert await told() == ("p4-1", "held")
            await agent.send(JobMoved(job_id=grant.job_id, state=JobState.SUCCEEDED))
            assert await told() == ("p4-1", "free")
            await agent.send(BoardsChanged(boards=(board("p4-1"),)))
            assert await told() == ("p4-2", "gone")


async def test_a_lease_is_told_to_its_holder_and_that_the_board_is_leased_to_everybody(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("p4"),))
        mine, other = await b.client_of(Role.FLASHER), await b.client_of(Role.FLASHER)
        boss = await b.client_of(Role.OPERATOR)
        wish = {"board": {"id": "p4"}, "for_secs": 600}
        async with (
            listening(mine, "?types=lease_state,board_changed") as own,
            listening(other, "?types=lease_state,board_changed") as others,
            listening(boss, "?types=lease_state") as bosses,
        ):
            for stream in (own, others, bosses):
                await stream.current()
            lease = (await mine.ask("POST", "/leases", wish)).body
            taken = await own.until(LeaseStateChanged)
            assert (taken.lease_id, taken.state, taken.board_id) == (lease["id"], "held", "p4")
            assert taken.expires_at == lease["expires_at"] and taken.fence == 1
            assert (await own.until(BoardChanged)).leased_until == lease["expires_at"]
            waits = (await other.ask("POST", "/leases", wish | {"wait_secs": 60})).body
            queued = await others.until(LeaseStateChanged)
            assert (queued.lease_id, queued.state, queued.board_id) == (waits["id"], "queued", None)
            await mine.ask("POST", f"/leases/{lease['id']}/renew", {"for_secs": 900})
            renewed = await own.until(LeaseStateChanged)
            assert renewed.state == "held" and renewed.expires_at > taken.expires_at
            await boss.ask("DELETE", f"/leases/{lease['id']}")
            ended = await own.until(LeaseStateChanged)
            assert (ended.state, ended.end) == ("ended", "kicked")
            given = await others.until(LeaseStateChanged)
            assert (given.lease_id, given.state) == (waits["id"], "held")
            told = [(await bosses.until(LeaseStateChanged)).state for _ in range(5)]
            assert told == ["held", "queued", "held", "ended", "held"]
        assert {e.lease_id for e in own.of(LeaseStateChanged)} == {lease["id"]}
        leased = [event.leased_until for event in others.of(BoardChanged)]
        assert leased[:2] == [None, lease["expires_at"]], "they see that it is leased, not by whom"
        async with listening(other, "?types=lease_state,board_changed") as stream:
            now = await stream.current()
            assert [event.type for event in now] == ["board_changed", "lease_state"]


async def test_a_lease_that_runs_out_or_is_given_back_frees_its_board_for_all_to_see(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("p4"),))
        mine = await b.client_of(Role.FLASHER)
        wish = {"board": {"id": "p4"}, "for_secs": 1}
        async with listening(mine, "?types=lease_state,board_changed") as stream:
            await stream.current()
            await mine.ask("POST", "/leases", wish)
            ended = await stream.until(LeaseStateChanged, lambda e: e.end is not None)
            assert ended.end == "expired"
            assert (await stream.until(BoardChanged)).leased_until is None
            lease = (await mine.ask("POST", "/leases", wish | {"for_secs": 600})).body
            await mine.ask("DELETE", f"/leases/{lease['id']}")
            ended = await stream.until(LeaseStateChanged, lambda e: e.end is not None)
            assert (ended.lease_id, ended.end) == (lease["id"], "released")
            assert (await stream.until(BoardChanged)).leased_until is None


async def test_a_key_that_is_limited_to_boards_hears_of_no_other(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        limited = await b.client_of(Role.FLASHER, boards=("p4-2",))
        async with listening(limited, "?types=board_changed") as stream:
            await stream.current()
            agent = await b.agent(boards=(board("p4-1"), board("p4-2"), board("p4-3")))
            assert (await stream.until(BoardChanged)).board.id == "p4-2"
            await agent.leave()
        await agent.link()
        async with listening(limited, "?types=board_changed") as stream:
            now = await stream.current()
            assert [e.board.id for e in now if isinstance(e, BoardChanged)] == ["p4-2"]


async def test_streams_end_when_their_key_is_revoked_or_expires(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        operator, mine = await b.client_of(Role.OPERATOR), await b.client_of(Role.BUILDER)
        soon = b.client((await b.served.control.keyring.make_key(Role.VIEWER, expires_in_s=1)).key)
        job_id = await waiting_job(mine)
        assert mine.key is not None
        async with (
            listening(operator) as other,
            listening(mine) as fleet,
            listening(b.client(None), f"?ticket={await ticket(mine)}") as by_ticket,
            listening(soon) as short,
            mine.events(job_id) as own,
        ):
            for stream in (other, fleet, by_ticket, short):
                await stream.current()
            path = f"/services/keys/{mine.key.split('_')[2]}"
            assert (await operator.ask("DELETE", path)).status == 204
            async with asyncio.timeout(WITHIN_S):
                while await fleet.next() is not None:
                    pass
                while await by_ticket.next() is not None:
                    pass
                await own.rest()
            await waiting_job(operator)  # wakes the others
            while await short.next() is not None:
                await waiting_job(operator)
            await other.until(TaskAvailable)
