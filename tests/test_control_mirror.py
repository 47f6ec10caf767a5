"""Rows kept in memory: read again when they were told of, never behind a word that was heard."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aegis_control.bus import EVERYTHING
from aegis_control.store import agents, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.database import Database
from aegis_control.store.jobs import JobRecord
from aegis_control.store.mirror import Mirror
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT
from databases import database_kind, database_url, postgres
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["database_kind", "database_url", "postgres"]

REQUEST = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))


@dataclass
class Reading:
    """Reads agents, and notes what it was asked for."""

    asked: list[Collection[str] | None] = field(default_factory=list)
    fails: bool = False
    hold: asyncio.Event | None = None

    async def __call__(
        self, conn: AsyncConnection, ids: Collection[str] | None
    ) -> Mapping[str, AgentRecord]:
        self.asked.append(ids)
        if self.fails:
            raise OSError("the store is away")
        found = await agents.some(conn, ids)
        if self.hold is not None:
            await self.hold.wait()
        return found


async def enroll(database: Database, *names: str) -> None:
    async with database.write() as conn:
        for name in names:
            await agents.enroll(conn, f"ag-{name}", name, b"k" * 32, now_s=1)


async def rename(database: Database, agent_id: str, name: str) -> None:
    async with database.write() as conn:
        await agents.rename(conn, agent_id, name)


async def test_only_what_was_told_of_is_read_again(database_url: str) -> None:
    async with Database.open(database_url) as database:
        await enroll(database, "a", "b")
        read = Reading()
        mirror = Mirror(database, "agent", read)
        before = dict(await mirror.now())
        await rename(database, "ag-a", "c")
        after = await mirror.now()
        await mirror.now()
        assert after["ag-a"].name == "c"
        assert after["ag-b"] is before["ag-b"]
        assert read.asked == [None, {"ag-a"}]


async def test_a_row_that_is_gone_is_gone_and_a_new_one_is_there(database_url: str) -> None:
    async with Database.open(database_url) as database:
        await enroll(database, "a")
        mirror = Mirror(database, "agent", agents.some)
        assert set(await mirror.now()) == {"ag-a"}
        async with database.write() as conn:
            await agents.remove(conn, "ag-a")
        await enroll(database, "b")
        assert set(await mirror.now()) == {"ag-b"}


async def test_a_word_heard_while_it_reads_is_not_lost(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        await enroll(database, "a")
        read = Reading(hold=asyncio.Event())
        mirror = Mirror(database, "agent", read)
        reading = asyncio.create_task(mirror.now())
        while not read.asked:
            await asyncio.sleep(0)
        await rename(database, "ag-a", "later")
        assert read.hold is not None
        read.hold.set()
        await reading
        assert (await mirror.now())["ag-a"].name == "later"


async def test_who_asks_while_another_reads_waits_for_what_was_read(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        await enroll(database, "a")
        read = Reading(hold=asyncio.Event())
        mirror = Mirror(database, "agent", read)
        first, second = asyncio.create_task(mirror.now()), asyncio.create_task(mirror.now())
        while not read.asked:
            await asyncio.sleep(0)
        assert read.hold is not None
        read.hold.set()
        assert set(await first) == set(await second) == {"ag-a"}
        assert read.asked == [None]


async def test_what_could_not_be_read_is_read_the_next_time(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        await enroll(database, "a")
        read = Reading()
        mirror = Mirror(database, "agent", read)
        await mirror.now()
        await rename(database, "ag-a", "new")
        read.fails = True
        with pytest.raises(OperationalError, match="away"):
            await mirror.now()
        read.fails = False
        assert (await mirror.now())["ag-a"].name == "new"


async def test_words_that_may_have_been_missed_have_all_read_again(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        await enroll(database, "a")
        read = Reading()
        mirror = Mirror(database, "agent", read)
        await mirror.now()
        database.bus.deliver([("agent", EVERYTHING)])
        await mirror.now()
        assert read.asked == [None, None]


async def test_a_job_is_in_the_mirror_of_open_jobs_until_it_ends(database_url: str) -> None:
    async with Database.open(database_url) as database:
        mirror: Mirror[JobRecord] = Mirror(database, "job", jobs.open_ones)
        async with database.write() as conn:
            await jobs.create(conn, "j1", "me", REQUEST, {}, now_s=1)
        assert (await mirror.now())["j1"].state is JobState.PENDING
        async with database.write() as conn:
            await jobs.move(conn, "j1", JobState.ASSIGNED, now_s=2, agent_id="ag-a")
        assert (await mirror.now())["j1"].agent_id == "ag-a"
        async with database.write() as conn:
            await jobs.set_end(conn, "j1", 99.0)
        assert (await mirror.now())["j1"].ends_at == 99.0
        async with database.write() as conn:
            await jobs.move(conn, "j1", JobState.CANCELED, now_s=3)
        assert "j1" not in await mirror.now()
