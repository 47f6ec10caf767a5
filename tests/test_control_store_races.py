"""What two transactions on PostgreSQL do side by side: one waits for the other, neither fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from aegis_control.store import boards, jobs, offers
from aegis_control.store.database import Database
from aegis_control.store.tables import board_fences
from aegis_protocol.failures.board import BoardBusy
from aegis_protocol.http_api.grants import GrantRequest
from control_fixtures import FINGERPRINT, bench
from databases import database_kind, database_url, postgres, postgres_url
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["database_kind", "database_url", "postgres", "postgres_url"]

REQUEST = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
WITHIN_S = 30.0

T = TypeVar("T")


class RolledBack(Exception):
    """What gives a transaction up."""


async def waits_for_a_lock(database: Database) -> None:
    """Return once some transaction in this database waits for another."""
    statement = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(WITHIN_S):
        waiting = 0
        while not waiting:  # a transaction sees the activity as it was when it asked first
            async with database.read() as conn:
                waiting = (await conn.execute(statement)).scalar_one()


async def beside(
    database: Database,
    first: Callable[[AsyncConnection], Awaitable[object]],
    second: Callable[[AsyncConnection], Awaitable[T]],
    *,
    commits: bool = True,
) -> T:
    """Do `first`, and `second` in another transaction before that one is over."""

    async def other() -> T:
        async with database.write() as conn:
            found = await second(conn)
            await conn.execute(text("SELECT 1"))  # its transaction is good for more
            return found

    try:
        async with database.write() as conn:
            await first(conn)
            going = asyncio.create_task(other())
            await waits_for_a_lock(database)
            if not commits:
                raise RolledBack
    except RolledBack:
        pass
    async with asyncio.timeout(WITHIN_S):
        return await going


async def hold(conn: AsyncConnection, job_id: str) -> int | None:
    """The fencing number, or None when the board is busy: nothing is given up for that."""
    try:
        return (await boards.hold(conn, "a", ["p4"], job_id, "me"))["p4"]
    except BoardBusy:
        return None


@pytest.mark.parametrize(("commits", "fence"), [(True, None), (False, 1)])
async def test_who_holds_a_board_first_holds_it_and_the_other_finds_it_busy(
    postgres_url: str, commits: bool, fence: int | None
) -> None:
    async with Database.open(postgres_url) as database:
        found = await beside(
            database, lambda conn: hold(conn, "j1"), lambda conn: hold(conn, "j2"), commits=commits
        )
        assert found == fence
        async with database.read() as conn:
            (row,) = await conn.execute(select(board_fences))
        assert (row.job_id, row.fence) == ("j1" if commits else "j2", 1)


async def test_a_board_that_was_never_held_goes_to_one_of_many(database_url: str) -> None:
    async with Database.open(database_url) as database:

        async def try_to(number: int) -> int | None:
            async with database.write() as conn:
                return await hold(conn, f"j{number}")

        found = await asyncio.gather(*map(try_to, range(12)))
        assert sorted(fence for fence in found if fence is not None) == [1]


async def test_an_offer_that_comes_twice_at_once_is_noted_once(postgres_url: str) -> None:
    async with Database.open(postgres_url) as database:
        async with database.write() as conn:
            await jobs.create(conn, "j", "me", REQUEST, {}, now_s=1)

        async def offer(conn: AsyncConnection) -> bool:
            await offers.add(conn, "jti", "j", "a", now_s=1)
            return await offers.exists(conn, "jti", "j", "a")

        assert await beside(database, offer, offer)
        async with database.read() as conn:
            assert await offers.count(conn, "j") == 1


async def test_an_offer_that_came_before_is_left_as_it_is(database_url: str) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            await jobs.create(conn, "j", "me", REQUEST, {}, now_s=1)
            await offers.add(conn, "jti", "j", "a", now_s=1)
            assert await offers.add_candidate(conn, "jti", "j", "client")
            await offers.add(conn, "jti", "j", "b", now_s=2)
            assert await offers.exists(conn, "jti", "j", "a")
            for _ in range(offers.MAX_CANDIDATES - 1):
                assert await offers.add_candidate(conn, "jti", "j", "client")
            assert not await offers.add_candidate(conn, "jti", "j", "client")


async def test_of_agents_that_enrol_with_one_name_at_once_one_has_it(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        machines = [b.machine("lab") for _ in range(6)]
        client = b.client(None)
        answers = await asyncio.gather(
            *(
                client.ask("POST", "/agents/enroll", m.enroll_request().model_dump(mode="json"))
                for m in machines
            )
        )
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409, 409]
        codes = {answer.error.code for answer in answers if answer.status == 409}
        assert codes == {"enroll.name_taken"}
