"""
What the agent must not forget across a restart: grants used and the newest attempt of each job.

A small SQLite file. Rows are dropped once nothing could need them any more.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS used_grants (
    jti TEXT PRIMARY KEY, offer_sha256 TEXT NOT NULL, answer TEXT, forget_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    job_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL, forget_at REAL NOT NULL);
"""
_KEEP_ATTEMPTS_S: Final = 7 * 86_400.0


@dataclass(frozen=True)
class UsedGrant:
    """A grant that came before: the digest of its offer, and the answer once it was given."""

    offer_sha256: str
    answer: str | None


class Ledger:
    """Short synchronous statements; each takes well under a millisecond but for the fsync."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def claim(self, jti: str, offer_sha256: str, *, forget_at: float) -> UsedGrant | None:
        """Mark `jti` as used and return None, or return how it was used before."""
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
        self._db.execute("UPDATE used_grants SET answer = ? WHERE jti = ?", (answer, jti))

    def newest_attempt(self, job_id: str, attempt: int, *, now_s: float) -> int:
        """Note `attempt` of `job_id`, and return the highest that was ever seen."""
        row = self._db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET "
            "attempt = max(attempt, excluded.attempt), forget_at = excluded.forget_at "
            "RETURNING attempt",
            (job_id, attempt, now_s + _KEEP_ATTEMPTS_S),
        ).fetchone()
        return int(row[0])

    def forget(self, *, now_s: float) -> None:
        """Drop what is past its time."""
        self._db.execute("DELETE FROM used_grants WHERE forget_at < ?", (now_s,))
        self._db.execute("DELETE FROM attempts WHERE forget_at < ?", (now_s,))
