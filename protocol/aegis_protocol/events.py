"""
What control tells a job's owner on `GET /signaling/{job_id}/events`.

Server-sent events: `id` is a number that grows, `event` the type, `data` one JSON object. No
secret is ever an event.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.http_api.signaling import Sdp
from aegis_protocol.model import Id, UnixSeconds, Wire
from aegis_protocol.states import JobState


class Connected(Wire):
    """The stream is open; `time` is control's clock. job_id: of a job's stream."""

    type: Literal["connected"] = "connected"
    job_id: Id | None = None
    time: UnixSeconds


class State(Wire):
    type: Literal["state"] = "state"
    job_id: Id
    state: JobState
    reasons: tuple[Reason, ...] = ()


class Assigned(Wire):
    """An agent is there: ask for the grant with `job_id`."""

    type: Literal["assigned"] = "assigned"
    job_id: Id
    agent_id: Id
    agent_name: str


class Answer(Wire):
    """signature: the agent's, base64url, over `dtls_statement`."""

    type: Literal["answer"] = "answer"
    job_id: Id
    jti: Id
    sdp: Sdp
    signature: str = Field(max_length=128)


class Candidate(Wire):
    type: Literal["candidate"] = "candidate"
    job_id: Id
    jti: Id
    candidate: str = Field(max_length=1024)
    sdpMid: str | None = Field(default=None, max_length=64)
    sdpMLineIndex: int | None = Field(default=None, ge=0, le=64)


class Rejected(Wire):
    """The agent refused the offer, or its link is down."""

    type: Literal["rejected"] = "rejected"
    job_id: Id
    jti: Id
    error: ErrorBody


class Closed(Wire):
    """Something ended: the agent's link (`agent.gone`), or the job."""

    type: Literal["closed"] = "closed"
    job_id: Id
    jti: Id | None = None
    error: ErrorBody | None = None


class Reset(Wire):
    """What was missed is not kept any more; what is true now follows."""

    type: Literal["reset"] = "reset"


class KeepAlive(Wire):
    type: Literal["keepalive"] = "keepalive"
    time: UnixSeconds


SignalEvent: TypeAlias = Annotated[
    Connected | State | Assigned | Answer | Candidate | Rejected | Closed | Reset | KeepAlive,
    Field(discriminator="type"),
]
SIGNAL_EVENT: Final[TypeAdapter[SignalEvent]] = TypeAdapter(SignalEvent)
