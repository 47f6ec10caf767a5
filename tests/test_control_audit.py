"""The audit: written with the act, bounded, and always readable."""

from __future__ import annotations

from pathlib import Path

import pytest
from aegis_control.acting import acting
from aegis_control.store import audit
from aegis_control.store.audit import Act
from aegis_control.store.database import Database
from aegis_control.store.tables import audit as table
from sqlalchemy import select


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'control.db'}"


async def test_an_act_stands_only_when_its_transaction_does(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database:
        with pytest.raises(RuntimeError):
            async with database.write() as conn:
                await audit.record(conn, Act(what="key.created", who="local"), now_s=1)
                raise RuntimeError
        async with database.write() as conn:
            await audit.record(conn, Act(what="key.revoked", who="local"), now_s=2)
        async with database.read() as conn:
            rows = (await conn.execute(select(table.c.what, table.c.at))).all()
    assert [tuple(row) for row in rows] == [("key.revoked", 2)]


async def test_who_acts_and_from_where_is_known_without_being_said(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database:
        async with database.write() as conn:
            await audit.record(conn, Act(what="job.ended"), now_s=1)
            with acting("mcp", "192.0.2.7"):
                await audit.record(conn, Act(what="job.ended"), now_s=1)
                with acting("ag-1"):
                    await audit.record(conn, Act(what="job.ended", source="other"), now_s=1)
            await audit.record(conn, Act(what="job.ended"), now_s=1)
        async with database.read() as conn:
            found = select(table.c.who, table.c.source).order_by(table.c.id)
            rows = [tuple(row) for row in await conn.execute(found)]
    assert rows == [
        ("control", None), ("mcp", "192.0.2.7"), ("ag-1", "other"), ("control", None)
    ]  # fmt: skip


async def test_facts_without_measure_or_sense_are_cut_to_their_names(tmp: Path) -> None:
    async with Database.open(url(tmp)) as database, database.write() as conn:
        hostile = (
            {"large": "x" * 20_000},
            {"endless": float("nan")},
            {"fine": [1, "\x00", "\ud800"]},
        )
        for facts in hostile:
            act = Act(what="agent.claimed", who="ag\n" + "x" * 100, outcome="\x1b[31m", facts=facts)
            await audit.record(conn, act, now_s=1)
        rows = (await conn.execute(select(table).order_by(table.c.id))).all()
    assert [row.facts for row in rows] == [
        {"cut": ["large"], "size_bytes": 20_013},
        {"unreadable": ["endless"]},
        {"fine": [1, "\x00", "\ud800"]},
    ]
    assert rows[0].who == "ag\N{REPLACEMENT CHARACTER}" + "x" * 77
    assert rows[0].outcome == "\N{REPLACEMENT CHARACTER}[31m"
