"""The audit: who did what, from where, with what outcome. Written in the transaction of the act."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aegis_protocol.audit import AuditRecord
from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.acting import actor
from aegis_control.bus import tell
from aegis_control.store.audit_chain import record_of
from aegis_control.store.tables import audit
from aegis_control.store.written_last import add_last

MAX_FACTS_BYTES: Final = 16_384

_ADD: Final = insert(audit)

CLAIMED: Final = "agent.claimed"
"""What an agent says of a job: digests of artifacts, a board's MAC. Its word, no more."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """
    what      `noun.past_verb`, such as `key.created`
    who       an identity's or an agent's id, `local`, or `control`; by default whoever acts here
    source    the address that it came from; by default that of the request or link
    decision  allowed, denied, done or failed
    rule      the rule that decided, where one did
    outcome   how it ended: a state, an error's code
    facts     JSON values; never a secret. More than 16 KiB of them is cut to their names.
    """

    what: str
    who: str = field(default_factory=lambda: actor().who)
    source: str | None = field(default_factory=lambda: actor().source)
    decision: str = "done"
    rule: str | None = None
    job_id: str | None = None
    agent_id: str | None = None
    board_id: str | None = None
    artifact_sha256: str | None = None
    outcome: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which records are looked for; what is not given does not matter."""

    since_s: float | None = None
    who: str | None = None
    job_id: str | None = None
    what: str | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        given: list[ColumnElement[bool]] = []
        if self.since_s is not None:
            given.append(audit.c.at >= self.since_s)
        if self.who is not None:
            given.append(audit.c.who == self.who)
        if self.job_id is not None:
            given.append(audit.c.job_id == self.job_id)
        if self.what is not None:
            given.append(audit.c.what == self.what)
        return given


async def record(conn: AsyncConnection, act: Act, *, now_s: float) -> None:
    """
    Write `act` at the transaction's end; it stands when that is committed, and is sealed within a
    second.
    """
    add_last(
        conn,
        _ADD,
        {
            "at": now_s,
            "what": _text(act.what, 64),
            "who": _text(act.who, 80),
            "source": _text(act.source, 64),
            "decision": _text(act.decision, 16),
            "rule": _text(act.rule, 200),
            "job_id": _text(act.job_id, 80),
            "agent_id": _text(act.agent_id, 80),
            "board_id": _text(act.board_id, 80),
            "artifact_sha256": _text(act.artifact_sha256, 64),
            "outcome": _text(act.outcome, 500),
            "facts": _bounded(act.facts),
        },
    )
    await tell(conn, "audit", "")


async def after(
    conn: AsyncConnection, seq: int, wanted: Wanted, *, limit: int
) -> tuple[AuditRecord, ...]:
    """The sealed records with a number above `seq`, oldest first."""
    statement = select(audit).where(audit.c.seq > seq, *wanted.clauses())
    rows = await conn.execute(statement.order_by(audit.c.seq).limit(limit))
    return tuple(record_of(row) for row in rows)


async def newest(conn: AsyncConnection, wanted: Wanted, *, limit: int) -> tuple[AuditRecord, ...]:
    """The newest of the sealed records, oldest first."""
    statement = select(audit).where(audit.c.seq.is_not(None), *wanted.clauses())
    rows = (await conn.execute(statement.order_by(audit.c.seq.desc()).limit(limit))).all()
    return tuple(record_of(row) for row in reversed(rows))


async def count_claims(conn: AsyncConnection, job_id: str) -> int:
    """How many claims of agents there are about a job."""
    statement = select(func.count()).where(audit.c.job_id == job_id, audit.c.what == CLAIMED)
    return int((await conn.execute(statement)).scalar_one())


def _text(value: str | None, limit: int) -> str | None:
    """What any database can keep, and any terminal can show: printable, and not too long."""
    if value is None:
        return None
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value[:limit])


def _bounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back, or only their names when they are too large."""
    try:
        words = json.dumps(facts, allow_nan=False, ensure_ascii=False)
        text = words.encode("utf-8", "replace").decode()
    except (TypeError, ValueError):
        return {"unreadable": sorted(str(name)[:80] for name in facts)[:64]}
    if len(text) > MAX_FACTS_BYTES:
        return {"cut": sorted(name[:80] for name in facts)[:64], "size_bytes": len(text)}
    kept: dict[str, Any] = json.loads(text)
    return kept
