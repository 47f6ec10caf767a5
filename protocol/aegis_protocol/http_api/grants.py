"""Asking for a grant, and the answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from aegis_protocol.actions import Action
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.grant import FingerprintText
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.http_api.toolchains import ToolchainWish
from aegis_protocol.model import Id, Labels, TargetName, UnixSeconds, Wire
from aegis_protocol.states import JobState

ChannelText = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class GrantWish(Wire):
    """What a grant is asked for: all that is decided on."""

    required_channels: tuple[ChannelText, ...] = Field(min_length=1, max_length=16)
    cpu_cores: float = Field(default=1.0, gt=0, le=1024)
    memory_mb: int = Field(default=1024, gt=0, le=1 << 24)
    timeout_secs: int = Field(default=600, ge=1, le=86_400)
    target: TargetName | None = None
    toolchain: ToolchainWish | None = None
    actions: tuple[Action, ...] | None = Field(default=None, max_length=16)
    """None: all that the role may."""
    agent_id: Id | None = None
    """An agent's id or its name."""
    labels: Labels = Field(default_factory=dict)
    boards: tuple[BoardWish, ...] = Field(default=(), max_length=16)
    project_key: Id | None = None
    priority: int | None = Field(default=None, ge=-100, le=100)
    """Of waiting jobs a higher one goes first. None: what the policy gives, else 0."""


class GrantRequest(GrantWish):
    """`POST /grant/request`. peer_fingerprint: of the caller's DTLS certificate (DER, SHA-256)."""

    peer_fingerprint: FingerprintText
    job_id: Id | None = None


class IceServer(Wire):
    """As in RTCIceServer (W3C WebRTC section 4.2.5)."""

    urls: tuple[Annotated[str, StringConstraints(max_length=256)], ...] = Field(
        min_length=1, max_length=8
    )
    username: str | None = Field(default=None, max_length=256)
    credential: str | None = Field(default=None, max_length=256)


class GrantReply(Wire):
    """200: an agent is there."""

    job_id: Id
    state: Literal[JobState.ASSIGNED, JobState.RUNNING, JobState.LOST]
    grant: str
    grant_expires_at: UnixSeconds
    agent_id: Id
    agent_name: str
    agent_key: str
    """The agent's Ed25519 public key, 32 bytes in base64url."""
    candidates: tuple[Id, ...] = ()
    allowed_channels: tuple[ChannelText, ...]
    max_bandwidth_kbps: int = Field(default=0, ge=0)
    max_message_rate: int = Field(default=0, ge=0)
    """Of what the client may send, in kbit/s and messages per second; 0: no limit."""
    actions: tuple[Action, ...]
    boards: tuple[Board, ...] = ()
    """The boards that the job holds."""
    ice_servers: tuple[IceServer, ...] = ()


class PendingReply(Wire):
    """202: no agent fits yet. An `assigned` event follows; then ask again with `job_id`."""

    job_id: Id
    state: Literal[JobState.PENDING]
    reasons: tuple[Reason, ...] = ()
