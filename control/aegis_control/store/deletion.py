"""The end of a store: all tables of ours, with what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from aegis_control.store.engine import WRITES, make_patient_engine
from aegis_control.store.failures import StoreUnusable
from aegis_control.store.tables import metadata

_REVISIONS: Final = "alembic_version"
_FUNCTIONS: Final = ("audit_refuse", "audit_keep")
"""What migrations made besides tables and what goes with them."""

_SUFFIXES: Final = ("", "-wal", "-shm")


def sqlite_files(url: str) -> tuple[Path, ...]:
    """The files of the SQLite database at `url` that are there; none for another kind."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return ()
    files = (Path(parsed.database + suffix) for suffix in _SUFFIXES)
    return tuple(path for path in files if path.exists())


async def delete_store(url: str) -> tuple[str, ...]:
    """
    Delete SQLite's files, or PostgreSQL's tables of ours; returns what was deleted, in words.

    Nobody may be at work on it. Raises StoreUnusable.
    """
    if make_url(url).get_backend_name() == "sqlite":
        files = sqlite_files(url)
        for path in files:
            path.unlink(missing_ok=True)
        return tuple(str(path) for path in files)
    engine = make_patient_engine(url)
    try:
        async with engine.execution_options(**{WRITES: True}).begin() as conn:
            return await conn.run_sync(_drop)
    except (DBAPIError, OSError) as exc:
        why = exc.orig if isinstance(exc, DBAPIError) else exc
        raise StoreUnusable(f"the store can't be opened: {why}") from exc
    finally:
        await engine.dispose()


def _drop(connection: Connection) -> tuple[str, ...]:
    there = MetaData()
    there.reflect(connection, only=lambda name, _: name in {*metadata.tables, _REVISIONS})
    there.drop_all(connection)
    for name in _FUNCTIONS:
        connection.execute(text(f"DROP FUNCTION IF EXISTS {name}()"))
    return tuple(f"table {name}" for name in sorted(there.tables))
