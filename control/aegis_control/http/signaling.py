"""Offers and candidates, passed on to the job's agent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.failures.http import KeyMissing
from aegis_protocol.http_api.signaling import IceCandidate, OfferReply, OfferRequest

from aegis_control.control import Control
from aegis_control.http.auth import presented_grant, presented_key
from aegis_control.http.route import Call, Reply, Route


async def offer(control: Control, call: Call) -> Reply:
    token = presented_grant(call.request)
    if token is None:
        raise KeyMissing(
            "the grant is missing",
            remedy="Send the grant of this job as `Authorization: Bearer`.",
        )
    reply = await control.signaling.offer(call.path("job_id"), token, call.taking(OfferRequest))
    return Reply(reply, HTTPStatus.ACCEPTED)


async def candidate(control: Control, call: Call) -> Reply:
    """By the grant, or by the owner's key for the newest offer."""
    job_id, body = call.path("job_id"), call.taking(IceCandidate)
    token = presented_grant(call.request)
    if token is not None:
        await control.signaling.candidate_by_grant(job_id, token, body)
    else:
        owner = await control.keyring.identify(presented_key(call.request))
        await control.signaling.candidate_by_owner(job_id, owner.id, body)
    return Reply(status=HTTPStatus.NO_CONTENT)


ROUTES: Final = (
    Route(
        "POST",
        "/signaling/{job_id}/offer",
        offer,
        "Send an offer to the job's agent; the grant is the Bearer token.",
        role=None,
        takes=OfferRequest,
        proves=True,
        gives={HTTPStatus.ACCEPTED: OfferReply},
    ),
    Route(
        "POST",
        "/signaling/{job_id}/candidate",
        candidate,
        "Send an ICE candidate to the job's agent, by the grant or the owner's key.",
        role=None,
        takes=IceCandidate,
        proves=True,
        gives={HTTPStatus.NO_CONTENT: None},
    ),
)
