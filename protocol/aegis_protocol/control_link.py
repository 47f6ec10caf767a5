"""
What control and an agent say to each other over `GET /agents/link`, a WebSocket.

One frame is one JSON object, told apart by `type`, at most 256 KiB.

    control -> agent   ToAgent    challenge, welcome, refused, job.offer, signal.candidate,
                                  job.cancel, revocations, issuer.keys, lease.revoke, pause,
                                  resume, drain, reset, ping
    agent -> control   ToControl  hello, signal.answer, signal.candidate, job.accepted,
                                  session.closed, job.rejected, job.moved, boards.changed, facts,
                                  status, revoked, pong

Control speaks first: challenge, hello, welcome (or refused). Any authenticated frame is life.
Fields may be added, never renamed.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, StringConstraints, TypeAdapter

from aegis_protocol.board import Board
from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.grants import IceServer
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.http_api.signaling import Sdp
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.model import Id, Labels, TargetName, UnixSeconds, Wire
from aegis_protocol.signing import facts_statement
from aegis_protocol.states import JobState, Order

MAX_FRAME_BYTES: Final = 262_144


class Challenge(Wire):
    """base_url: CONTROL_PUBLIC_BASE_URL; an agent accepts only the one it is configured for."""

    type: Literal["challenge"] = "challenge"
    nonce: str = Field(min_length=16, max_length=128)
    base_url: str = Field(max_length=256)


class HeldJob(Wire):
    """A job that the agent still has when it (re)connects."""

    job_id: Id
    state: JobState
    attempt: int = 1
    boards: dict[Id, int] = Field(default_factory=dict)
    error: ErrorBody | None = None
    """Why it ended, where it did not end well; without facts and cut to a short message."""
    sessions: tuple[Id, ...] | None = Field(default=None, max_length=64)
    """The grants (jti) of its connections; None: not said."""


class Hello(Wire):
    """signature: base64url, over `link_statement(nonce, base_url)`. clock: unix seconds."""

    type: Literal["hello"] = "hello"
    protocol: int
    agent_id: Id
    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    version: str = Field(max_length=40)
    targets: tuple[TargetName, ...] = Field(default=(), max_length=64)
    toolchains: tuple[Toolchain, ...] = Field(default=(), max_length=32)
    boards: tuple[Board, ...] = Field(default=(), max_length=256)
    slots: int = Field(ge=0, le=256)
    cpu_cores: float = Field(gt=0)
    memory_mb: int = Field(gt=0)
    labels: Labels = Field(default_factory=dict)
    clock: UnixSeconds
    instance: Id | None = None
    """Made up at the process' start: tells a link that came back from a second process."""
    jobs: tuple[HeldJob, ...] = Field(default=(), max_length=256)
    warm_projects: tuple[Id, ...] = Field(default=(), max_length=1024)
    paused: str | None = Field(default=None, max_length=200)
    """Why the agent takes no new jobs, when it does not."""
    quarantined: str | None = Field(default=None, max_length=200)
    """Why it takes none until an operator resets it, when it says so of itself."""
    resets: int = Field(default=0, ge=0)
    """How many resets it had heard of: of a quarantine from before the last one nothing is left."""
    revoked_through: int = Field(default=0, ge=0)
    """How far it has carried out what was revoked."""


class JobRevoke(Wire):
    """Close the job's connections at once and admit no more; jti: that one grant's alone."""

    type: Literal["job.revoke"] = "job.revoke"
    job_id: Id
    jti: Id | None = None
    reason: str = Field(default="", max_length=200)


class KeyRevoke(Wire):
    """Close every connection of the identity at once and admit no more of it."""

    type: Literal["key.revoke"] = "key.revoke"
    identity: Id
    reason: str = Field(default="", max_length=200)


Revocation: TypeAlias = Annotated[JobRevoke | KeyRevoke, Field(discriminator="type")]


class Standing(Wire):
    """
    What operators have ordered of the agent; it holds until they order something else.

    deadline_secs  draining: in how long what still runs is canceled; null: it may finish
    resets         how often the agent was reset
    """

    ordered: Order = Order.NONE
    reason: str = Field(default="", max_length=200)
    deadline_secs: float | None = Field(default=None, ge=0)
    resets: int = Field(default=0, ge=0)


class Welcome(Wire):
    type: Literal["welcome"] = "welcome"
    protocol: int
    server_time: UnixSeconds
    issuer_keys: tuple[IssuerKey, ...]
    ping_secs: float = Field(gt=0)
    silence_secs: float = Field(gt=0)
    """A link without a frame for so long is down."""
    over_jobs: tuple[Id, ...] = ()
    """Those of hello's jobs that control knows to be over: end them."""
    standing: Standing = Field(default_factory=Standing)
    revocations: tuple[Revocation, ...] = Field(default=(), max_length=1024)
    """What was revoked since hello's `revoked_through`: carried out before anything else."""
    revoked_through: int = Field(default=0, ge=0)
    """How far those reach."""
    ice_urls: tuple[Annotated[str, StringConstraints(max_length=256)], ...] = Field(
        default=(), max_length=32
    )
    """The STUN and TURN servers that offers will name: find out beforehand which of them answer."""


class Refused(Wire):
    """In place of welcome, or later (link.superseded); control closes the socket after it."""

    type: Literal["refused"] = "refused"
    error: ErrorBody


class JobFrame(Wire):
    job_id: Id


class JobOffer(JobFrame):
    type: Literal["job.offer"] = "job.offer"
    jti: Id
    grant: str = Field(max_length=8192)
    sdp: Sdp
    ice_servers: tuple[IceServer, ...] = Field(default=(), max_length=16)


class SignalCandidate(JobFrame):
    """Both ways; an empty candidate is the end of candidates."""

    type: Literal["signal.candidate"] = "signal.candidate"
    jti: Id
    candidate: str = Field(max_length=1024)
    sdpMid: str | None = Field(default=None, max_length=64)
    sdpMLineIndex: int | None = Field(default=None, ge=0, le=64)


class JobCancel(JobFrame):
    """Cancel what runs and end the job as canceled."""

    type: Literal["job.cancel"] = "job.cancel"
    reason: str = Field(default="", max_length=200)


class Revocations(Wire):
    """What was revoked, oldest first; `revoked` says that all of it through there is done."""

    type: Literal["revocations"] = "revocations"
    revocations: tuple[Revocation, ...] = Field(max_length=1024)
    through: int = Field(ge=0)


class IssuerKeys(Wire):
    """The issuer's keys as they are now: a new one is signed by one that the agent trusts."""

    type: Literal["issuer.keys"] = "issuer.keys"
    issuer_keys: tuple[IssuerKey, ...] = Field(max_length=16)


class LeaseRevoke(Wire):
    type: Literal["lease.revoke"] = "lease.revoke"
    board_id: Id
    fence: int
    force: bool = False


class Pause(Wire):
    type: Literal["pause"] = "pause"
    reason: str = Field(default="", max_length=200)


class Resume(Wire):
    type: Literal["resume"] = "resume"


class Drain(Wire):
    """No new jobs. deadline_secs: in how long what still runs is canceled; null: it may finish."""

    type: Literal["drain"] = "drain"
    reason: str = Field(default="", max_length=200)
    deadline_secs: float | None = Field(default=None, ge=0)


class Reset(Wire):
    """Take jobs again whatever was in the way, a quarantine too. resets: how many there were."""

    type: Literal["reset"] = "reset"
    resets: int = Field(ge=1)


class Ping(Wire):
    type: Literal["ping"] = "ping"
    time: UnixSeconds


class Pong(Wire):
    type: Literal["pong"] = "pong"
    time: UnixSeconds


class SignalAnswer(JobFrame):
    type: Literal["signal.answer"] = "signal.answer"
    jti: Id
    sdp: Sdp
    signature: str = Field(max_length=128)


class JobAccepted(JobFrame):
    """The grant holds and the peer's connection is open: the job runs. ends_at: by the agent."""

    type: Literal["job.accepted"] = "job.accepted"
    jti: Id
    ends_at: UnixSeconds


class SessionClosed(JobFrame):
    """A connection that was accepted is closed; error: why, where it was not the peer's wish."""

    type: Literal["session.closed"] = "session.closed"
    jti: Id
    error: ErrorBody | None = None


class JobRejected(JobFrame):
    type: Literal["job.rejected"] = "job.rejected"
    jti: Id
    error: ErrorBody


class JobMoved(JobFrame):
    """The job's state at the agent changed. project_key: what is warm there now."""

    type: Literal["job.moved"] = "job.moved"
    state: JobState
    error: ErrorBody | None = None
    ends_at: UnixSeconds | None = None
    project_key: Id | None = None


class BoardsChanged(Wire):
    type: Literal["boards.changed"] = "boards.changed"
    boards: tuple[Board, ...] = Field(max_length=256)


class Facts(JobFrame):
    """
    For the audit: artifact digests, a board's MAC. The agent's claims, never content.

    signature  the agent's, base64url, over `statement()`
    """

    type: Literal["facts"] = "facts"
    facts: dict[str, Any]
    at: UnixSeconds | None = None
    signature: str | None = Field(default=None, max_length=128)

    def statement(self) -> bytes:
        """What the agent signs: the job, the time, and the facts with sorted keys."""
        words = json.dumps([self.at, self.facts], sort_keys=True, separators=(",", ":"))
        return facts_statement(self.job_id, words)


class Revoked(Wire):
    """What was revoked is carried out through there, and will be remembered."""

    type: Literal["revoked"] = "revoked"
    through: int = Field(ge=0)


class Status(Wire):
    """Whether the agent takes jobs: it pauses (reason), resumes (None), drains, is quarantined."""

    type: Literal["status"] = "status"
    paused: str | None = Field(default=None, max_length=200)
    draining: bool = False
    quarantined: str | None = Field(default=None, max_length=200)
    resets: int = Field(default=0, ge=0)


ToAgent: TypeAlias = Annotated[
    Challenge
    | Welcome
    | Refused
    | JobOffer
    | SignalCandidate
    | JobCancel
    | Revocations
    | IssuerKeys
    | LeaseRevoke
    | Pause
    | Resume
    | Drain
    | Reset
    | Ping,
    Field(discriminator="type"),
]
TO_AGENT: Final[TypeAdapter[ToAgent]] = TypeAdapter(ToAgent)

ToControl: TypeAlias = Annotated[
    Hello
    | SignalAnswer
    | SignalCandidate
    | JobAccepted
    | SessionClosed
    | JobRejected
    | JobMoved
    | BoardsChanged
    | Facts
    | Status
    | Revoked
    | Pong,
    Field(discriminator="type"),
]
TO_CONTROL: Final[TypeAdapter[ToControl]] = TypeAdapter(ToControl)
