"""The store: answers, has the tables of this version, is whole, has an operator's key."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Final

from aegis_protocol.actions import Role
from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.doctor.check import Check, error, failed, ok, skipped, warning
from aegis_control.doctor.subject import Subject
from aegis_control.store import audit, clock, keys, migrate, tables
from aegis_control.store.deletion import sqlite_files
from aegis_control.store.engine import make_patient_engine
from aegis_control.store.failures import SchemaNewer, StoreUnusable

SKEW_LIMIT_S: Final = 5.0
_AUDIT_RECORDS: Final = 1000
_UNSEALED_S: Final = 60.0
_EXPIRES_SOON_S: Final = 14 * 86_400
_NAMES: Final = ("migrations", "integrity", "store_clock", "operator_keys", "audit")


async def store(subject: Subject) -> tuple[Check, ...]:
    """Every check of the store; those behind one that failed are skipped."""
    url = subject.config.database
    is_sqlite = url.startswith("sqlite")
    if is_sqlite and not sqlite_files(url):
        start = "Start `aegis-control serve`, or run `migrate`."
        return _whole([warning("database", "there is none yet", start)], "there is no database yet")
    found = [ok("database", f"{'SQLite' if is_sqlite else 'PostgreSQL'} answers")]
    try:
        engine = make_patient_engine(url)
    except StoreUnusable as exc:
        return _whole([failed("database", exc)], "the database can't be opened")
    try:
        async with engine.connect() as conn:
            async for check in _inside(subject, conn):
                found.append(check)
    except (DBAPIError, OSError) as exc:
        why = exc.orig if isinstance(exc, DBAPIError) else exc
        found[0] = error("database", f"it does not answer: {why}", StoreUnusable.remedy)
    finally:
        await engine.dispose()
    return _whole(found, "the database does not answer")


def _whole(found: list[Check], why: str) -> tuple[Check, ...]:
    """With those skipped that were not come to."""
    made = {check.name for check in found}
    return (*found, *(skipped(name, why) for name in _NAMES if name not in made))


async def _inside(subject: Subject, conn: AsyncConnection) -> AsyncIterator[Check]:
    yield await asyncio.to_thread(integrity, subject)
    found_missing = True
    try:
        found = await conn.run_sync(migrate.schema)
    except SchemaNewer as exc:
        yield failed("migrations", exc)
    else:
        found_missing = bool(found.missing)
        if found_missing:
            yield warning(
                "migrations",
                f"the tables are of revision {found.current or 'none'}, and {found.newest} is ours",
                "Start the new `aegis-control serve`, or run `aegis-control migrate`.",
            )
        else:
            yield ok("migrations", f"revision {found.newest}, as this version has it")
    yield await _store_clock(subject, conn)
    if await conn.run_sync(_has_keys):
        yield await _operator_keys(conn)
    else:
        yield skipped("operator_keys", "there are no tables yet")
    if not found_missing:
        yield await _audit(conn)
    else:
        yield skipped("audit", "the tables are not of this version")


def integrity(subject: Subject) -> Check:
    """Read the whole SQLite file once; PostgreSQL keeps checksums of its own."""
    parsed = make_url(subject.config.database)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return ok("integrity", "PostgreSQL's own matter")
    remedy = (
        "Stop control, keep a copy of the file, and restore a backup; `sqlite3 FILE .recover` may"
        " save what is readable."
    )
    try:
        with closing(sqlite3.connect(Path(parsed.database), timeout=5)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as exc:
        return error("integrity", f"{parsed.database}: {exc}", remedy)
    if answer != "ok":
        return error("integrity", f"{parsed.database}: {answer}", remedy)
    return ok("integrity", "the file is whole")


async def _store_clock(subject: Subject, conn: AsyncConnection) -> Check:
    if conn.dialect.name == "sqlite":
        return ok("store_clock", "SQLite has this machine's")
    skew_s = await clock.now_s(conn) - subject.machine.now_s()
    said = f"the database's clock is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) > SKEW_LIMIT_S:
        return error("store_clock", said, "Set both clocks by NTP: timedatectl set-ntp true")
    return ok("store_clock", said)


async def _audit(conn: AsyncConnection) -> Check:
    """The newest records follow on each other, and on them the newest head that was signed."""
    records = await audit.newest(conn, audit.Wanted(), limit=_AUDIT_RECORDS)
    whole = (
        "Look at all of it: aegis-control audit verify. Whoever could write to the store did so."
    )
    for before, record in pairwise(records):
        if record.seq != before.seq + 1:
            return error("audit", f"records behind {before.seq} are missing", whole)
        if record.expected_hash(before.hash) != record.hash:
            return error("audit", f"the record {record.seq} is not the one that was sealed", whole)
    last = records[-1].seq if records else 0
    signed = select(func.max(tables.audit_heads.c.seq))
    head = (await conn.execute(signed)).scalar_one() or 0
    if head > last:
        return error("audit", f"{head} records were signed for, and the last is {last}", whole)
    waiting = select(func.min(tables.audit.c.at)).where(tables.audit.c.seq.is_(None))
    oldest = (await conn.execute(waiting)).scalar_one()
    if oldest is not None and time.time() - oldest > _UNSEALED_S:
        return warning(
            "audit",
            "records wait to be sealed for more than a minute",
            "Control seals them while it runs: start it, or look at its log.",
        )
    return ok("audit", f"the newest {len(records)} of {last} records are whole")


def _has_keys(connection: Connection) -> bool:
    return inspect(connection).has_table("keys")


async def _operator_keys(conn: AsyncConnection) -> Check:
    now_s = time.time()
    good = [
        record
        for record in await keys.every(conn)
        if record.role is Role.OPERATOR
        and record.revoked_at is None
        and (record.expires_at is None or record.expires_at > now_s)
    ]
    make = "Make one: aegis-control keys create --role operator"
    if not good:
        return warning("operator_keys", "there is none: operators must come by the socket", make)
    lasting = [r for r in good if r.expires_at is None or r.expires_at > now_s + _EXPIRES_SOON_S]
    if not lasting:
        return warning("operator_keys", "the last one expires within 14 days", make)
    return ok("operator_keys", f"{len(good)}")
