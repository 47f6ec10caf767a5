"""From a wish to a grant: ask control, and wait while no agent fits, saying why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import (
    ControlUnreachable,
    JobTimedOut,
    RoleInsufficient,
    Unavailable,
)
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.ids import new_id

from aegis_client.control import ControlClient
from aegis_client.reporter import Reporter
from aegis_client.signals import Signals
from aegis_client.wish import Wish

POLL_S: Final = 15.0
"""Control drops a waiting job whose client neither listens nor polls for 60 s."""


async def requested(
    control: ControlClient, wish: Wish, peer_fingerprint: str
) -> tuple[GrantRequest, GrantReply | PendingReply]:
    """
    Ask for what `wish` says, without its optional actions where the key's role lacks one of them.
    Return how to ask for that job again, and control's answer.
    """
    key = None if wish.job_id else new_id()
    try:
        request = wish.request(peer_fingerprint)
        reply = await control.request_grant(request, idempotency_key=key)
    except RoleInsufficient as exc:
        # A refusal that names no action names the channels or the key as a whole.
        lacking = {str(action) for action in exc.facts.get("actions", ())}
        if not lacking or not lacking <= wish.needs.optional:
            raise
        request = replace(wish, needs=wish.needs.without_optional()).request(peer_fingerprint)
        reply = await control.request_grant(request, idempotency_key=key)
    return request.model_copy(update={"job_id": reply.job_id}), reply


async def granted(
    control: ControlClient,
    signals: Signals,
    wanted: GrantRequest,
    reply: GrantReply | PendingReply,
    *,
    wait_s: float,
    reporter: Reporter,
) -> GrantReply:
    """
    Return a grant for the job of `reply`, whose `wanted` names it by now.

    A control that is away meanwhile is asked again: a job that waits is not lost with it. Raises
    JobTimedOut with the reasons when no agent was free for `wait_s` seconds, and what ended the job
    if something did.
    """
    deadline = time.monotonic() + wait_s
    while isinstance(reply, PendingReply):
        reporter.waiting(reply.reasons)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _waited_in_vain(reply, wait_s)
        try:
            async with asyncio.timeout(min(POLL_S, left_s)):
                await _assigned(signals, reply.reasons, reporter)
        except TimeoutError:
            pass
        signals.assigned = False
        try:
            reply = await control.request_grant(wanted)
        except (ControlUnreachable, Unavailable) as exc:
            if time.monotonic() >= deadline:
                raise
            reporter.note(f"{exc.message} ({exc.code}); the job waits, asking again")
    return reply


async def _assigned(signals: Signals, shown: tuple[Reason, ...], reporter: Reporter) -> None:
    """Return when control says that an agent was found; tell of new reasons meanwhile."""
    while True:

        def look(known: tuple[Reason, ...] = shown) -> AegisError | bool | None:
            if signals.assigned:
                return True
            if signals.over() is not None:
                return signals.over()
            return False if signals.reasons and signals.reasons != known else None

        found = await signals.until(look)
        if isinstance(found, AegisError):
            raise found
        if found:
            return
        shown = signals.reasons
        reporter.waiting(shown)


def _waited_in_vain(reply: PendingReply, wait_s: float) -> JobTimedOut:
    why = "; ".join(map(str, reply.reasons[:5]))
    return JobTimedOut(
        f"no agent was free within {wait_s:.0f} s" + (f" ({why})" if why else ""),
        job_id=reply.job_id,
        reasons=[reason.model_dump(mode="json") for reason in reply.reasons],
    )
