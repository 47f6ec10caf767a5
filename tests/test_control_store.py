"""The store: its tables, and what two writers at once can't both do."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aegis_control.store import agents, boards, events, idempotency, jobs, keys, tables
from aegis_control.store.database import Database, StoreUnusable
from aegis_protocol.events import KeepAlive
from aegis_protocol.failures.board import BoardBusy
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JOB_MOVES, IllegalMove, JobState
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from control_fixtures import FINGERPRINT
from databases import database_kind, database_url, postgres
from sqlalchemy import Connection, text
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

REQUEST = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'control.db'}"


async def test_the_migrations_make_exactly_the_tables(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found: list[Any] = compare_metadata(context, tables.metadata)
        return found

    async with Database.open(database_url) as database, database.read() as conn:
        assert await conn.run_sync(differences) == []


async def test_opening_again_keeps_what_is_there(database_url: str) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        await jobs.create(conn, "j", "me", REQUEST, {}, now_s=1)
    async with Database.open(database_url) as database, database.read() as conn:
        record = await jobs.get(conn, "j")
        assert record is not None and record.request == REQUEST


async def test_a_sqlite_file_is_read_while_it_is_written(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database, database.read() as conn:
        mode = (await conn.execute(text("PRAGMA journal_mode"))).scalar_one()
        assert mode == "wal"


@pytest.mark.parametrize("bad", ["nonsense", "mysql+nothing://x", "sqlite+aiosqlite:////no/dir/x"])
async def test_a_database_that_can_not_be_opened_is_named_without_its_password(bad: str) -> None:
    with pytest.raises(StoreUnusable) as refused:
        async with Database.open(bad):
            pass
    assert refused.value.code == "store.unusable"


async def test_a_file_that_is_no_database_is_named_and_no_thread_is_left(tmp: Path) -> None:
    (tmp / "control.db").write_bytes(b"no database at all, and long enough to be read as one" * 9)
    before = threading.active_count()
    with pytest.raises(StoreUnusable):
        async with Database.open(url(tmp)):
            pass
    await until(lambda: threading.active_count() <= before)


async def test_a_password_of_the_database_is_in_no_error(tmp: Path) -> None:
    with pytest.raises(StoreUnusable) as refused:
        async with Database.open("postgresql+nodriver://user:hunter2@db/x"):
            pass
    assert "hunter2" not in str(refused.value.body())


async def test_every_move_of_the_table_and_no_other_is_made(database_url: str) -> None:
    async with Database.open(database_url) as database:
        for now in JobState:
            for to in JobState:
                job_id = f"{now}-{to}"
                async with database.write() as conn:
                    await jobs.create(conn, job_id, "me", REQUEST, {}, now_s=1)
                    await conn.execute(
                        tables.jobs.update().where(tables.jobs.c.id == job_id).values(state=now)
                    )
                async with database.write() as conn:
                    if to in JOB_MOVES[now]:
                        assert (await jobs.move(conn, job_id, to, now_s=2)).state is to
                    else:
                        with pytest.raises(IllegalMove):
                            await jobs.move(conn, job_id, to, now_s=2)


async def test_of_two_who_move_one_job_at_once_one_wins(database_url: str) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            await jobs.create(conn, "j", "me", REQUEST, {}, now_s=1)

        async def assign(agent: str) -> str | None:
            try:
                async with database.write() as conn:
                    return (
                        await jobs.move(conn, "j", JobState.ASSIGNED, now_s=2, agent_id=agent)
                    ).agent_id
            except IllegalMove:
                return None

        won = [a for a in await asyncio.gather(*(assign(f"a{n}") for n in range(8))) if a]
        assert len(won) == 1
        async with database.read() as conn:
            record = await jobs.get(conn, "j")
        assert record is not None and record.agent_id == won[0]


async def test_fences_grow_with_every_holding_and_a_held_board_is_refused_whole(
    database_url: str,
) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            assert await boards.hold(conn, "a", ["x", "y"], "j1", "me") == {"x": 1, "y": 1}
        with pytest.raises(BoardBusy):
            async with database.write() as conn:
                await boards.hold(conn, "a", ["w", "x"], "j2", "me")
        async with database.write() as conn:
            assert (await boards.holdings(conn)).jobs == {("a", "x"): "j1", ("a", "y"): "j1"}
            assert await boards.release(conn, "j1", now_s=1) == 2
            assert await boards.hold(conn, "a", ["x"], "j2", "me") == {"x": 2}
            assert await boards.hold(conn, "b", ["x"], "j3", "me") == {"x": 1}  # another agent's x


async def test_a_token_serves_one_agent_once_however_many_try(database_url: str) -> None:
    async with Database.open(database_url) as database:
        now = time.time()
        async with database.write() as conn:
            await keys.add_token(conn, "t", b"t", name=None, now_s=now, expires_at=now + 60)
            await keys.add_token(conn, "old", b"old", name=None, now_s=now, expires_at=now - 1)
            await keys.add_token(
                conn, "named", b"named", name="bench", now_s=now, expires_at=now + 60
            )

        async def use(digest: bytes, agent: str, name: str = "any") -> bool:
            async with database.write() as conn:
                return await keys.use_token(conn, digest, agent, name, now_s=now)

        used = await asyncio.gather(*(use(b"t", f"ag-{n}") for n in range(8)))
        assert sum(used) == 1
        winner = f"ag-{used.index(True)}"
        assert await use(b"t", winner)  # its answer was lost: it asks again
        assert not await use(b"old", "ag-1")
        assert not await use(b"named", "ag-1", "other")
        assert await use(b"named", "ag-1", "bench")


async def test_event_ids_grow_and_are_not_given_twice(database_url: str) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            await jobs.create(conn, "j", "me", REQUEST, {}, now_s=1)
            for n in range(3):
                await events.add(conn, "j", KeepAlive(time=n), now_s=float(n))
            first = [event.id for event in await events.after(conn, "j", 0, limit=10)]
            await events.forget(conn, before_s=100)
            assert await events.head(conn, "j") == 0
            await events.add(conn, "j", KeepAlive(time=9), now_s=9)
            (again,) = await events.after(conn, "j", 0, limit=10)
        assert first == sorted(first)
        assert again.id > first[-1]


async def test_an_idempotency_key_counts_for_a_day(database_url: str) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        day = idempotency.LIFE_S
        await idempotency.keep(conn, "me", "k", b"1", "j1", now_s=0)
        assert await idempotency.find(conn, "me", "k", now_s=day - 1)
        assert await idempotency.find(conn, "you", "k", now_s=1) is None
        assert await idempotency.find(conn, "me", "k", now_s=day + 1) is None
        await idempotency.keep(conn, "me", "k", b"2", "j2", now_s=day + 1)
        assert await idempotency.forget(conn, now_s=day + 2) == 0
        assert await idempotency.forget(conn, now_s=3 * day) == 1


async def test_an_enrolled_key_that_enrols_again_takes_its_new_name(database_url: str) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        await agents.enroll(conn, "ag-1", "old", b"k" * 32, now_s=1)
        await agents.enroll(conn, "ag-1", "new", b"k" * 32, now_s=2)
        assert [agent.name for agent in await agents.every(conn)] == ["new"]
