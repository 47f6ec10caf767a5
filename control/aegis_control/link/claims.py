"""What an agent claims of a job (`facts`): kept in the audit as its word, if the job is its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from aegis_protocol.control_link import Facts
from aegis_protocol.signing import unb64, verified

from aegis_control.jobs import Change
from aegis_control.store import agents, audit, jobs
from aegis_control.store.audit import Act

MAX_CLAIMS: Final = 256
"""About one job."""

_DIGEST: Final = re.compile(r"^[0-9a-f]{64}$")
_TELLING: Final = ("manifest.json", "firmware.bin")
"""The artifacts of which one stands for all: the manifest has the others' digests."""


async def keep(change: Change, agent_id: str, frame: Facts) -> str | None:
    """Write the claim down; returns why not, when it is not."""
    job = await jobs.get(change.conn, frame.job_id)
    if job is None or job.agent_id != agent_id:
        return "not this agent's job"
    if await audit.count_claims(change.conn, job.id) >= MAX_CLAIMS:
        return "too many claims"
    record = await agents.get(change.conn, agent_id)
    signed = record is not None and _is_signed(frame, record.public_key)
    if frame.signature is not None and not signed:
        return "the signature is not the agent's"
    claim = Act(
        what=audit.CLAIMED,
        who=agent_id,
        job_id=job.id,
        agent_id=agent_id,
        board_id=_text(frame.facts, "board"),
        artifact_sha256=_digest(frame.facts),
        outcome=_text(frame.facts, "mac"),
        facts={"claim": frame.facts, "at": frame.at, "signature": frame.signature},
    )
    await audit.record(change.conn, claim, now_s=change.now_s)
    return None


def _is_signed(frame: Facts, public_key: bytes) -> bool:
    if frame.signature is None:
        return False
    try:
        return verified(public_key, unb64(frame.signature), frame.statement())
    except ValueError:
        return False


def _digest(facts: Mapping[str, Any]) -> str | None:
    found = facts.get("artifacts")
    digests = dict(found) if isinstance(found, dict) else {}
    names = [*_TELLING, *sorted(str(name) for name in digests)]
    candidates = [*(digests.get(name) for name in names), facts.get("elf_sha256")]
    return next((d for d in candidates if isinstance(d, str) and _DIGEST.match(d)), None)


def _text(facts: Mapping[str, Any], name: str) -> str | None:
    value = facts.get(name)
    return value if isinstance(value, str) else None
