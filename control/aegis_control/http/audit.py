"""What operators ask of the audit: its records, what holds its chain, a head, pruning."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.audit import AuditHead, AuditList, AuditPruned, AuditPruneRequest, AuditSeal
from aegis_protocol.failures.http import BadRequest, NotFound

from aegis_control.control import Control
from aegis_control.http.route import Call, Query, Reply, Route
from aegis_control.store import audit
from aegis_control.store.audit import Wanted

MAX_ROWS: Final = 1000
_ROWS: Final = 200
_MAX_WORD: Final = 80

QUERIES: Final = (
    Query("after", "Records after this number, oldest first; without it the newest.",
          {"type": "integer", "minimum": 0}),
    Query("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": MAX_ROWS}),
    Query("since", "Records from this time on (unix seconds).", {"type": "number"}),
    Query("who", "Records of this identity or agent, `local` or `control`."),
    Query("job", "Records of this job."),
    Query("what", "Records of this kind of act, such as `key.created`."),
)  # fmt: skip


async def list_records(control: Control, call: Call) -> Reply:
    """All that is written is sealed before, so that an operator finds what was just done."""
    limit = _whole(call, "limit", lowest=1, highest=MAX_ROWS)
    limit = _ROWS if limit is None else limit
    after = _whole(call, "after", lowest=0, highest=1 << 53)
    wanted = Wanted(
        since_s=_seconds(call, "since"),
        who=_word(call, "who"),
        job_id=_word(call, "job"),
        what=_word(call, "what"),
    )
    await control.auditor.seal()
    async with control.database.read() as conn:
        if after is None:
            return Reply(AuditList(records=await audit.newest(conn, wanted, limit=limit)))
        found = await audit.after(conn, after, wanted, limit=limit + 1)
    return Reply(AuditList(records=found[:limit], more=len(found) > limit))


async def show_seal(control: Control, call: Call) -> Reply:
    return Reply(await control.auditor.overview())


async def publish_head(control: Control, call: Call) -> Reply:
    """Sign the newest record now; 404 while there is none."""
    head = await control.auditor.publish()
    if head is None:
        raise NotFound("there is no record yet")
    return Reply(head)


async def prune(control: Control, call: Call) -> Reply:
    wanted = call.taking(AuditPruneRequest)
    return Reply(await control.auditor.prune(before_s=wanted.before))


def _whole(call: Call, name: str, *, lowest: int, highest: int) -> int | None:
    text = call.request.query.get(name)
    if text is None:
        return None
    if not (
        text.isascii() and text.isdigit() and len(text) <= 16 and lowest <= int(text) <= highest
    ):
        raise BadRequest(f"{name}: {lowest} to {highest}", field=name)
    return int(text)


def _seconds(call: Call, name: str) -> float | None:
    text = call.request.query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{name}: unix seconds", field=name)
    return value


def _word(call: Call, name: str) -> str | None:
    text = call.request.query.get(name)
    if text is not None and not (1 <= len(text) <= _MAX_WORD and text.isprintable()):
        raise BadRequest(f"{name}: 1 to {_MAX_WORD} printable characters", field=name)
    return text


ROUTES: Final = (
    Route(
        "GET",
        "/services/audit",
        list_records,
        "The audit's records.",
        role=Role.OPERATOR,
        queries=QUERIES,
        gives={HTTPStatus.OK: AuditList},
        local=True,
    ),
    Route(
        "GET",
        "/services/audit/seal",
        show_seal,
        "Where the audit's chain begins, its signed heads, and the keys that signed them.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: AuditSeal},
        local=True,
    ),
    Route(
        "POST",
        "/services/audit/head",
        publish_head,
        "Sign the audit's newest record now, and log the head.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: AuditHead},
        local=True,
        lasting=True,
    ),
    Route(
        "POST",
        "/services/audit/prune",
        prune,
        "Drop old records of the audit; a signed checkpoint takes their place.",
        role=Role.OPERATOR,
        takes=AuditPruneRequest,
        gives={HTTPStatus.OK: AuditPruned},
        local=True,
        lasting=True,
    ),
)
