"""Offers and candidates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from aegis_protocol.model import Id, Wire

Sdp = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class OfferRequest(Wire):
    """`POST /signaling/{job_id}/offer`; the grant is the Bearer token."""

    sdp: Sdp
    type: Literal["offer"] = "offer"


class OfferReply(Wire):
    """202: on its way; the answer comes as an event."""

    job_id: Id
    jti: Id


class IceCandidate(Wire):
    """`POST /signaling/{job_id}/candidate`; an empty candidate is the end of candidates."""

    candidate: str = Field(max_length=1024)
    sdpMid: str | None = Field(default=None, max_length=64)
    sdpMLineIndex: int | None = Field(default=None, ge=0, le=64)
