"""Tables of an earlier version come to ours with all that is in them, on both databases."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aegis_control.store import agents, jobs, keys, migrate
from aegis_control.store.database import Database, bring_up_to_date, look_at_schema
from aegis_control.store.engine import WRITES, make_engine
from aegis_control.store.failures import SchemaNewer
from aegis_control.store.migrations import versions
from aegis_protocol.actions import Role
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT
from databases import database_kind, database_url, postgres
from sqlalchemy import Connection, inspect, text

__all__ = ["database_kind", "database_url", "postgres"]

RELEASED = "0002"
EVERY = sorted(path.name[:4] for path in Path(versions.__path__[0]).glob("0*.py"))

REQUEST = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))

ROWS = {
    "keys": {
        "id": "k",
        "digest": b"d",
        "role": "builder",
        "name": "old",
        "limits": json.dumps({"targets": ["esp32"]}),
        "created_at": 1.0,
    },
    "agents": {
        "id": "ag-1",
        "name": "bench",
        "public_key": b"k" * 32,
        "enrolled_at": 1.0,
        "link_epoch": 7,
        "last_seen": 2.0,
    },
    "jobs": {
        "id": "j",
        "identity": "k",
        "state": "running",
        "attempt": 2,
        "request": REQUEST.model_dump_json(),
        "limits": "{}",
        "agent_id": "ag-1",
        "boards": json.dumps({"b": 3}),
        "candidates": "[]",
        "reasons": "[]",
        "returns": 0,
        "created_at": 1.0,
        "updated_at": 1.0,
    },
    "board_fences": {"agent_id": "ag-1", "board_id": "b", "fence": 3, "job_id": "j"},
    "identities": {"id": "k", "asked_at": 1.0},
}


async def at_revision(url: str, revision: str) -> None:
    engine = make_engine(url).execution_options(**{WRITES: True})
    async with engine.begin() as conn:
        await conn.run_sync(migrate.upgrade_to, revision)
        columns = await conn.run_sync(_columns)
        for table, row in ROWS.items():
            kept = {name: value for name, value in row.items() if name in columns.get(table, ())}
            if not kept:
                continue
            names = ", ".join(kept)
            values = ", ".join(f":{name}" for name in kept)
            statement = f"INSERT INTO {table} ({names}) VALUES ({values})"  # noqa: S608
            await conn.execute(text(statement), kept)
    await engine.dispose()


def _columns(conn: Connection) -> dict[str, set[str]]:
    tables = inspect(conn)
    return {
        table: {column["name"] for column in tables.get_columns(table)}
        for table in tables.get_table_names()
    }


@pytest.mark.parametrize("revision", EVERY[:-1])
async def test_what_an_earlier_version_kept_is_there_after_the_migrations(
    database_url: str, revision: str
) -> None:
    await at_revision(database_url, revision)
    before = await look_at_schema(database_url)
    assert before.current == revision
    assert list(before.missing) == EVERY[EVERY.index(revision) + 1 :]
    async with Database.open(database_url) as database, database.read() as conn:
        key = await keys.get(conn, "k")
        agent = await agents.get(conn, "ag-1")
        job = await jobs.get(conn, "j")
    assert key is not None and key.role is Role.BUILDER
    assert key.limits == {"targets": ["esp32"]}
    assert agent is not None and agent.link_epoch == 7 and agent.name == "bench"
    assert job is not None and job.state is JobState.RUNNING
    assert (job.attempt, job.boards, job.request) == (2, {"b": 3}, REQUEST)
    assert (await look_at_schema(database_url)).missing == ()


async def test_of_several_that_migrate_at_once_one_does_it(database_url: str) -> None:
    await at_revision(database_url, RELEASED)
    found = await asyncio.gather(*(bring_up_to_date(database_url) for _ in range(4)))
    assert sorted(bool(before.missing) for before in found) == [False, False, False, True]


async def test_tables_of_a_newer_version_are_left_alone_and_the_reason_is_said(
    database_url: str,
) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        await conn.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(SchemaNewer) as refused:
        async with Database.open(database_url):
            pass
    assert refused.value.code == "store.newer_schema"
    assert "0999" in refused.value.message
    with pytest.raises(SchemaNewer):
        await look_at_schema(database_url)


async def test_an_empty_database_lacks_everything(database_url: str) -> None:
    before = await look_at_schema(database_url)
    assert before.current is None
    assert before.missing[0] == "0001"
