"""SQLite in the event loop: locks of others are waited for without holding it up."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from aegis_control.store import keys, sqlite_driver
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from control_fixtures import bench
from sqlalchemy.exc import OperationalError
from waiting import until


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'control.db'}"


async def add_key(database: Database, key_id: str) -> None:
    async with database.write() as conn:
        await keys.add(
            conn,
            key_id,
            b"digest",
            Role.VIEWER,
            name="x" * 80,
            limits={},
            now_s=time.time(),
            expires_at=None,
        )


async def test_a_write_waits_for_another_processes_lock_and_the_loop_goes_on(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database:
        with closing(sqlite3.connect(tmp / "control.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(add_key(database, "k1"))
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not writing.done()
            async with database.read() as conn:
                assert await keys.count(conn) == 0
            other.execute("ROLLBACK")
        await writing
        async with database.read() as conn:
            assert await keys.count(conn) == 1


async def test_a_lock_that_is_never_given_back_is_an_error_in_time(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_driver, "BUSY_LIMIT_S", 0.1)
    async with Database.open(url(tmp)) as database:
        with closing(sqlite3.connect(tmp / "control.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError, match="locked"):
                await add_key(database, "k1")
            other.execute("ROLLBACK")
        await add_key(database, "k2")


async def test_writers_of_one_process_take_turns_in_the_order_they_came(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database:
        done: list[int] = []

        async def write(number: int) -> None:
            async with database.write():
                await asyncio.sleep(0)
                done.append(number)

        await asyncio.gather(*(write(number) for number in range(50)))
        assert done == list(range(50))


async def test_a_transaction_that_is_canceled_is_rolled_back_and_gives_its_turn_back(
    tmp: Path,
) -> None:
    async with Database.open(url(tmp)) as database:
        began = asyncio.Event()

        async def never_ends() -> None:
            async with database.write() as conn:
                await keys.add_token(conn, "t", b"t", name=None, now_s=1, expires_at=2)
                began.set()
                await asyncio.Event().wait()

        stuck = asyncio.create_task(never_ends())
        await began.wait()
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        async with database.write() as conn:
            assert await keys.forget_tokens(conn, before_s=9) == 0


async def test_the_log_is_written_back_by_a_thread(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_driver, "_CHECKPOINT_EVERY_S", 0.05)
    monkeypatch.setattr(sqlite_driver, "_CHECKPOINT_BYTES", 10_000)
    path = tmp / "control.db"
    async with Database.open(url(tmp)) as database:
        await until(lambda: path.stat().st_size > 4096)  # what the migrations wrote
        before = path.stat().st_size
        for number in range(400):
            await add_key(database, f"k{number}")
        await until(lambda: path.stat().st_size > before)


async def test_a_closed_database_leaves_no_log_and_no_connection(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database:
        await add_key(database, "k1")
        assert (tmp / "control.db-wal").exists()
    assert not (tmp / "control.db-wal").exists()


class Disk:
    """The operating system's `fsync`, which ends when it is told to, or fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.goes_on = threading.Event()
        self.fails = False

    def fsync(self, descriptor: int) -> None:
        self.asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        self.goes_on.wait(20)
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


async def test_an_operators_act_is_answered_when_it_is_on_the_disk(tmp: Path, disk: Disk) -> None:
    disk.goes_on.set()
    async with bench(tmp) as b:
        operator = await b.client_of(Role.OPERATOR)
        made = (await operator.ask("POST", "/services/keys", {"role": "viewer"})).body
        disk.asked.clear()
        disk.goes_on.clear()
        asking = asyncio.create_task(operator.ask("DELETE", f"/services/keys/{made['id']}"))
        await until(lambda: bool(disk.asked))
        assert (await operator.ask("GET", "/services/keys")).status == 200  # nobody else waits
        assert not asking.done()
        disk.goes_on.set()
        assert (await asking).status == 204
        assert disk.asked[0] == "control.db-wal"


async def test_an_act_that_the_disk_does_not_take_is_not_said_to_be_done(
    tmp: Path, disk: Disk
) -> None:
    disk.goes_on.set()
    async with bench(tmp) as b:
        operator = await b.client_of(Role.OPERATOR)
        disk.fails = True
        answered = await operator.ask("POST", "/services/keys", {"role": "viewer"})
        assert (answered.status, answered.error.code) == (503, "control.unavailable")
        disk.fails = False
        assert (await operator.ask("POST", "/services/keys", {"role": "viewer"})).status == 201
