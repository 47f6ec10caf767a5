"""
What the agent must not forget across a restart: grants used, the newest attempt of each job, what
was revoked, and how far it has carried that out.

A small SQLite file. Rows are dropped once nothing could need them any more.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

import structlog
from aegis_protocol.failures.source import DiskFull

from aegis_agent.state_dir import StateUnusable

log = structlog.get_logger()

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS used_grants (
    jti TEXT PRIMARY KEY, offer_sha256 TEXT NOT NULL, answer TEXT, forget_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    job_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL, forget_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS revoked (
    kind TEXT NOT NULL, what TEXT NOT NULL, forget_at REAL NOT NULL, PRIMARY KEY (kind, what));
CREATE TABLE IF NOT EXISTS cursors (
    name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_KEEP_ATTEMPTS_S: Final = 7 * 86_400.0
_KEEP_REVOKED_S: Final = 7 * 86_400.0
"""Longer than any job; a grant lives for a minute."""

Kind: TypeAlias = Literal["grant", "job", "identity"]


@dataclass(frozen=True)
class UsedGrant:
    """A grant that came before: the digest of its offer, and the answer once it was given."""

    offer_sha256: str
    answer: str | None


class Ledger:
    """
    Its methods wait for the disk: call them in a thread, whichever. They raise DiskFull when the
    disk does not take what must be kept.
    """

    def __init__(self, path: Path) -> None:
        self._taking_turns = threading.Lock()
        try:
            self._db = _opened(path)
        except (sqlite3.OperationalError, OSError) as exc:
            raise StateUnusable(f"{path} can't be used: {exc}", path=str(path)) from exc
        except sqlite3.DatabaseError as exc:
            # Without it grants of the last minute could be used twice, by who has their DTLS keys.
            log.warning("ledger.damaged", path=str(path), detail=str(exc))
            path.replace(path.with_name(f"{path.name}.damaged"))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _opened(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._taking_turns:
            self._db.close()

    def claim(self, jti: str, offer_sha256: str, *, forget_at: float) -> UsedGrant | None:
        """Mark `jti` as used and return None, or return how it was used before."""
        with self._turn():
            cursor = self._db.execute(
                "INSERT INTO used_grants VALUES (?, ?, NULL, ?) ON CONFLICT DO NOTHING",
                (jti, offer_sha256, forget_at),
            )
            if cursor.rowcount == 1:
                return None
            row = self._db.execute(
                "SELECT offer_sha256, answer FROM used_grants WHERE jti = ?", (jti,)
            ).fetchone()
        return UsedGrant(*row)

    def answered(self, jti: str, answer: str) -> None:
        with self._turn():
            self._db.execute("UPDATE used_grants SET answer = ? WHERE jti = ?", (answer, jti))

    def newest_attempt(self, job_id: str, attempt: int, *, now_s: float) -> int:
        """Note `attempt` of `job_id`, and return the highest that was ever seen."""
        with self._turn():
            row = self._db.execute(
                "INSERT INTO attempts VALUES (?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET "
                "attempt = max(attempt, excluded.attempt), forget_at = excluded.forget_at "
                "RETURNING attempt",
                (job_id, attempt, now_s + _KEEP_ATTEMPTS_S),
            ).fetchone()
        return int(row[0])

    def revoke(self, what: Iterable[tuple[Kind, str]], *, through: int, now_s: float) -> None:
        """Remember all of `what`, and that what was revoked is carried out `through` there."""
        rows = [(kind, name, now_s + _KEEP_REVOKED_S) for kind, name in what]
        with self._turn(), self._whole():
            self._db.executemany("INSERT OR REPLACE INTO revoked VALUES (?, ?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO cursors VALUES ('revoked', ?)", (through,))

    def is_revoked(self, *what: tuple[Kind, str]) -> bool:
        """Tell whether any of `what` was revoked."""
        with self._turn():
            return any(
                self._db.execute(
                    "SELECT 1 FROM revoked WHERE kind = ? AND what = ?", one
                ).fetchone()
                for one in what
            )

    def revoked_through(self) -> int:
        """How far what was revoked is carried out; 0: nothing yet."""
        with self._turn():
            row = self._db.execute("SELECT value FROM cursors WHERE name = 'revoked'").fetchone()
        return 0 if row is None else int(row[0])

    def forget(self, *, now_s: float) -> None:
        """Drop what is past its time."""
        with self._turn():
            self._db.execute("DELETE FROM used_grants WHERE forget_at < ?", (now_s,))
            self._db.execute("DELETE FROM attempts WHERE forget_at < ?", (now_s,))
            self._db.execute("DELETE FROM revoked WHERE forget_at < ?", (now_s,))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """One transaction: all of it, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._taking_turns:
            try:
                yield
            except sqlite3.Error as exc:
                raise DiskFull(f"the ledger of grants can't be written: {exc}") from exc


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
