"""The audit: written with the act, bounded, sealed, and what somebody changed in it is found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aegis_control.acting import acting
from aegis_control.audit_check import ChainCheck, Problem
from aegis_control.auditing import Auditor
from aegis_control.issuer import Issuer
from aegis_control.store import audit
from aegis_control.store.audit import Act, Wanted
from aegis_control.store.database import Database
from aegis_control.store.tables import audit as table
from aegis_protocol.audit import AuditHead, AuditRecord
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from databases import database_kind, database_url, postgres
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

__all__ = ["database_kind", "database_url", "postgres"]


async def test_an_act_stands_only_when_its_transaction_does(database_url: str) -> None:
    async with Database.open(database_url) as database:
        with pytest.raises(RuntimeError):
            async with database.write() as conn:
                await audit.record(conn, Act(what="key.created", who="local"), now_s=1)
                raise RuntimeError
        async with database.write() as conn:
            await audit.record(conn, Act(what="key.revoked", who="local"), now_s=2)
        async with database.read() as conn:
            rows = (await conn.execute(select(table.c.what, table.c.at))).all()
    assert [tuple(row) for row in rows] == [("key.revoked", 2)]


async def test_who_acts_and_from_where_is_known_without_being_said(database_url: str) -> None:
    async with Database.open(database_url) as database:
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


async def test_facts_without_measure_or_sense_are_cut_to_their_names(database_url: str) -> None:
    hostile = (
        {"large": "x" * 20_000},
        {"endless": float("nan")},
        {"fine": [1, "\x00", "\ud800"]},
    )
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            for facts in hostile:
                who, outcome = "ag\n" + "x" * 100, "\x1b[31m"
                act = Act(what="agent.claimed", who=who, outcome=outcome, facts=facts)
                await audit.record(conn, act, now_s=1)
        async with database.read() as conn:
            rows = (await conn.execute(select(table).order_by(table.c.id))).all()
    assert [row.facts for row in rows] == [
        {"cut": ["large"], "size_bytes": 20_013},
        {"unreadable": ["endless"]},
        {"fine": [1, "\x00", "?"]},
    ]
    assert rows[0].who == "ag\N{REPLACEMENT CHARACTER}" + "x" * 77
    assert rows[0].outcome == "\N{REPLACEMENT CHARACTER}[31m"


@dataclass
class Log:
    """An audit with somebody who seals it. `verify` reads it as it is now."""

    database: Database
    auditor: Auditor

    async def write(self, *outcomes: str, at: float | None = None) -> None:
        async with self.database.write() as conn:
            for outcome in outcomes:
                act = Act(what="test.acted", outcome=outcome, facts={"n": [1, 2.5, "é"]})
                await audit.record(conn, act, now_s=time.time() if at is None else at)
        await self.auditor.seal()

    async def tamper(self, *statements: str) -> None:
        """Change it as somebody with the database in his hands can."""
        async with self.database.write() as conn:
            on = " ON audit" if conn.dialect.name == "postgresql" else ""
            for trigger in ("audit_written_once", "audit_kept"):
                await conn.execute(text(f"DROP TRIGGER IF EXISTS {trigger}{on}"))
            for statement in statements:
                await conn.execute(text(statement))

    async def records(self) -> tuple[AuditRecord, ...]:
        async with self.database.read() as conn:
            return await audit.after(conn, 0, Wanted(), limit=10_000)

    async def verify(self, *heads: AuditHead) -> tuple[Problem, ...]:
        seal = await self.auditor.overview()
        keys = {key.kid: key.x for key in seal.keys}
        check = ChainCheck(seal.checkpoint, (*seal.heads, *heads), keys)
        for record in await self.records():
            check.take(record)
        return check.finish()


@asynccontextmanager
async def log(url: str, *outcomes: str) -> AsyncIterator[Log]:
    async with Database.open(url) as database:
        issuer = Issuer(Ed25519PrivateKey.generate())
        made = Log(database, Auditor(database, issuer, keep_days=0))
        await made.write(*outcomes)
        yield made


def codes(problems: Sequence[Problem]) -> list[tuple[str, int]]:
    return [(problem.code, problem.seq) for problem in problems]


SWAP = (
    "UPDATE audit SET seq = NULL WHERE seq = {a}",
    "UPDATE audit SET seq = {a} WHERE seq = {b}",
    "UPDATE audit SET seq = {b} WHERE seq IS NULL",
)

REHASH = (
    "UPDATE audit SET hash = x'{}' WHERE seq = {}",
    "UPDATE audit SET hash = decode('{}', 'hex') WHERE seq = {}",
)


async def test_what_is_written_is_numbered_chained_and_whole(database_url: str) -> None:
    async with log(database_url, "a", "b", "c") as kept:
        await kept.write("d")
        assert [(r.seq, r.outcome) for r in await kept.records()] == [
            (1, "a"), (2, "b"), (3, "c"), (4, "d")
        ]  # fmt: skip
        head = await kept.auditor.publish()
        assert head is not None and head.seq == 4
        assert await kept.verify(head) == ()


async def test_a_record_that_was_altered_is_found(database_url: str) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        await kept.tamper("UPDATE audit SET who = 'nobody' WHERE seq = 3")
        assert codes(await kept.verify()) == [("altered", 3)]
        await kept.tamper("UPDATE audit SET at = at + 1 WHERE seq = 6")
        assert codes(await kept.verify()) == [("altered", 3), ("altered", 6)]


async def test_records_that_were_removed_are_found(database_url: str) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        await kept.tamper("DELETE FROM audit WHERE seq IN (1, 4, 5)")
        assert codes(await kept.verify()) == [("removed", 1), ("removed", 4)]


async def test_a_removed_record_is_found_though_the_others_were_numbered_anew(
    database_url: str,
) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        move = "UPDATE audit SET seq = {} WHERE seq = {}"
        moves = [move.format(n - 1, n) for n in range(4, 9)]
        await kept.tamper("DELETE FROM audit WHERE seq = 3", *moves)
        found = codes(await kept.verify())
        assert found[0] == ("altered", 3)
        assert {place for _, place in found} == {3, 4, 5, 6, 7}


@pytest.mark.parametrize(("a", "b"), [(2, 3), (2, 7)])
async def test_records_that_changed_places_are_found(database_url: str, a: int, b: int) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        await kept.tamper(*(statement.format(a=a, b=b) for statement in SWAP))
        assert codes(await kept.verify()) == [("moved", a), ("moved", b)]


async def test_records_that_changed_places_under_the_hashes_are_found(database_url: str) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        hashes = {record.seq: record.hash for record in await kept.records()}
        again = REHASH["postgresql" in database_url]
        await kept.tamper(
            *(statement.format(a=2, b=7) for statement in SWAP),
            *(again.format(hashes[n], n) for n in (2, 7)),
        )
        assert codes(await kept.verify()) == [("moved", 2), ("moved", 7)]


async def test_a_tail_cut_from_before_the_last_published_head_is_found(database_url: str) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        head = await kept.auditor.publish()
        assert head is not None
        elsewhere = AuditHead.parse(head.text())
        await kept.tamper("DELETE FROM audit WHERE seq > 5", "DELETE FROM audit_heads")
        assert await kept.verify() == ()  # nothing inside tells
        assert codes(await kept.verify(elsewhere)) == [("tail_cut", 8)]
        await kept.write(*"xyz")  # the chain grows over the cut
        assert codes(await kept.verify(elsewhere)) == [("head_differs", 8)]


async def test_a_chain_written_anew_does_not_fit_the_heads(database_url: str) -> None:
    async with log(database_url, *"abcdefgh") as kept:
        head = await kept.auditor.publish()
        assert head is not None
        await kept.tamper(
            "UPDATE audit SET outcome = 'nothing' WHERE seq = 2",
            "UPDATE audit SET seq = NULL, hash = NULL",
            "DELETE FROM audit_heads",
        )
        await kept.auditor.seal()  # by control itself, which does not know
        assert await kept.verify() == ()
        assert codes(await kept.verify(head)) == [("head_differs", 8)]


async def test_a_head_of_another_key_counts_for_nothing(database_url: str) -> None:
    async with log(database_url, *"abc") as kept:
        stranger = Auditor(kept.database, Issuer(Ed25519PrivateKey.generate()), keep_days=0)
        head = await stranger.publish()
        assert head is not None
        forged = head.model_copy(update={"seq": 2})
        await kept.tamper("DELETE FROM audit_heads")
        assert codes(await kept.verify(head)) == [("unsigned", 3)]
        assert codes(await kept.verify(forged)) == [("unsigned", 2)]


async def test_pruning_leaves_a_signed_checkpoint_and_nothing_else_does(database_url: str) -> None:
    async with log(database_url) as kept:
        await kept.write(*"abcde", at=100)
        await kept.write(*"fgh")
        early = await kept.auditor.publish()
        done = await kept.auditor.prune(before_s=time.time() - 60)
        assert early is not None and done.checkpoint is not None
        assert (done.removed, done.checkpoint.seq) == (5, 5)
        await kept.auditor.seal()
        assert [r.outcome or r.what for r in await kept.records()] == [
            "f",
            "g",
            "h",
            "audit.pruned",
        ]
        assert await kept.verify(early) == ()
        assert (await kept.auditor.prune(before_s=time.time() - 60)).removed == 0

        await kept.tamper("DELETE FROM audit WHERE seq = 6")
        assert codes(await kept.verify()) == [("removed", 6)]
        # a head is no checkpoint: who has no key can't drop more than control did
        await kept.tamper(
            "DELETE FROM audit WHERE seq <= 8",
            "DELETE FROM audit_heads WHERE kind = 'checkpoint'",
            "UPDATE audit_heads SET kind = 'checkpoint'",
        )
        assert ("unsigned", 8) in codes(await kept.verify())


async def test_an_old_record_behind_a_young_one_waits_with_it(database_url: str) -> None:
    async with log(database_url) as kept:
        await kept.write("old", at=100)
        await kept.write("young")
        await kept.write("old again", at=100)
        assert (await kept.auditor.prune(before_s=200)).removed == 1


async def test_all_may_be_pruned_and_the_chain_goes_on(database_url: str) -> None:
    async with log(database_url) as kept:
        await kept.write(*"abc", at=100)
        await kept.auditor.prune(before_s=200)
        await kept.write("d")
        assert [(r.seq, r.what) for r in await kept.records()] == [
            (4, "audit.pruned"), (5, "test.acted")
        ]  # fmt: skip
        assert await kept.verify() == ()


async def test_the_database_itself_refuses_to_change_what_is_sealed(database_url: str) -> None:
    async with log(database_url, *"abc") as kept:
        for statement in (
            "UPDATE audit SET who = 'nobody' WHERE seq = 2",
            "DELETE FROM audit WHERE seq = 2",
        ):
            with pytest.raises(DBAPIError, match="append-only"):
                async with kept.database.write() as conn:
                    await conn.execute(text(statement))
        assert await kept.verify() == ()


async def test_many_who_write_and_seal_at_once_make_one_chain(database_url: str) -> None:
    async with log(database_url) as kept:

        async def act(n: int) -> None:
            await kept.write(*(f"{n}-{m}" for m in range(3)))

        await asyncio.gather(*(act(n) for n in range(8)))
        await kept.auditor.seal()
        assert [r.seq for r in await kept.records()] == list(range(1, 25))
        assert await kept.verify() == ()


async def test_of_two_replicas_one_publishes_in_a_minute(database_url: str) -> None:
    async with log(database_url, "a") as kept:
        other = Auditor(kept.database, kept.auditor._issuer, keep_days=0)
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for auditor in (kept.auditor, other):
                group.create_task(auditor.run(stopping))
            async with asyncio.timeout(20):
                while not (await kept.auditor.overview()).heads:
                    await asyncio.sleep(0.02)
            await kept.write("b")
            assert [head.seq for head in (await kept.auditor.overview()).heads] == [1]
            stopping.set()
            kept.auditor.wake()
            other.wake()
        # what was written last is signed at the end
        assert [head.seq for head in (await kept.auditor.overview()).heads] == [1, 2]
