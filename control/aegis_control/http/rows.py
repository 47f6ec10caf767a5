"""How many rows a list has, and of what: queries that several lists take."""

from __future__ import annotations

from typing import Final

from aegis_protocol.failures.http import BadRequest

from aegis_control.http.route import Call, Query

MAX_ROWS: Final = 1000
ROWS: Final = 200

LIMIT: Final = Query(
    "limit",
    f"At most so many; {ROWS} by default.",
    {"type": "integer", "minimum": 1, "maximum": MAX_ROWS},
)
OF_JOB: Final = Query("job", "Only of this job.")
OF: Final = (
    OF_JOB,
    Query("identity", "Only of this identity."),
    Query("agent", "Only at this agent, by id or name."),
)


def row_limit(call: Call) -> int:
    text = call.request.query.get("limit", str(ROWS))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_ROWS):
        raise BadRequest(f"limit: 1 to {MAX_ROWS}", field="limit")
    return int(text)
