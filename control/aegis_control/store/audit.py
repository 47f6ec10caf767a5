"""The audit: who did what, from where, with what outcome. Written in the transaction of the act."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.acting import actor
from aegis_control.store.tables import audit

MAX_FACTS_BYTES: Final = 16_384


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


async def record(conn: AsyncConnection, act: Act, *, now_s: float) -> None:
    """Write `act`; it stands when the transaction is committed, and is sealed within a second."""
    await conn.execute(
        insert(audit).values(
            at=now_s,
            what=_text(act.what, 64),
            who=_text(act.who, 80),
            source=_text(act.source, 64),
            decision=_text(act.decision, 16),
            rule=_text(act.rule, 200),
            job_id=_text(act.job_id, 80),
            agent_id=_text(act.agent_id, 80),
            board_id=_text(act.board_id, 80),
            artifact_sha256=_text(act.artifact_sha256, 64),
            outcome=_text(act.outcome, 500),
            facts=_bounded(act.facts),
        )
    )


def _text(value: str | None, limit: int) -> str | None:
    """What any database can keep, and any terminal can show: printable, and not too long."""
    if value is None:
        return None
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value[:limit])


def _bounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back, or only their names when they are too large."""
    try:
        text = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError):
        return {"unreadable": sorted(str(name)[:80] for name in facts)[:64]}
    if len(text) > MAX_FACTS_BYTES:
        return {"cut": sorted(name[:80] for name in facts)[:64], "size_bytes": len(text)}
    kept: dict[str, Any] = json.loads(text)
    return kept
