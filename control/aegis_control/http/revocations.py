"""What operators take back, and how far the agents have carried it out."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, assert_never

from aegis_protocol.actions import Role
from aegis_protocol.http_api.revocations import RevocationList, RevocationRow, RevokeRequest

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.http.rows import OF_JOB
from aegis_control.store import revocations
from aegis_control.store.revocations import RevocationRecord

_SETTLES_S: Final = 2.0
"""How long the answer waits for agents that have a link."""
_ROWS: Final = 1000


async def revoke(control: Control, call: Call) -> Reply:
    """Take back a grant, a job or a key, and say how far the agents are with it."""
    wanted = call.taking(RevokeRequest)
    match wanted.kind:
        case "grant":
            found = await control.revoking.grant(wanted.id, wanted.reason)
        case "job":
            found = await control.revoking.job(wanted.id, wanted.reason)
        case "key":
            found = await control.revoking.key(wanted.id, wanted.reason)
        case _:
            assert_never(wanted.kind)
    if any(control.links.is_there(one.agent_id) for one in found):
        found = await control.revoking.settled(wanted.kind, wanted.id, within_s=_SETTLES_S)
    return Reply(_listed(found))


async def show(control: Control, call: Call) -> Reply:
    """What was revoked (of one job), newest first."""
    job_id = call.request.query.get("job")
    async with control.database.read() as conn:
        if job_id:
            found = await revocations.of_job(conn, job_id)
        else:
            found = await revocations.recent(conn, limit=_ROWS)
    return Reply(_listed(found))


def _listed(found: Sequence[RevocationRecord]) -> RevocationList:
    return RevocationList(
        revocations=tuple(
            RevocationRow(
                seq=one.seq,
                kind=one.kind,
                id=one.what,
                agent_id=one.agent_id,
                agent_name=one.agent_name,
                job_id=one.job_id,
                reason=one.reason,
                by=one.by,
                at=one.at,
                state="done" if one.done else "pending",
            )
            for one in found
        )
    )


ROUTES: Final = (
    Route(
        "POST",
        "/services/revocations",
        revoke,
        "Take back a grant, a job or a key; what agents have of it ends.",
        role=Role.OPERATOR,
        takes=RevokeRequest,
        gives={HTTPStatus.OK: RevocationList},
        local=True,
        lasting=True,
    ),
    Route(
        "GET",
        "/services/revocations",
        show,
        "What was revoked, newest first, and whether its agent has carried it out.",
        role=Role.OPERATOR,
        queries=(OF_JOB,),
        gives={HTTPStatus.OK: RevocationList},
        local=True,
    ),
)
