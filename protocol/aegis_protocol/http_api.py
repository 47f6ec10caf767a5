"""The bodies of control's HTTP API, and the facts about an agent that both sides of it use."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from aegis_protocol.actions import Action, Role
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.grant import FingerprintText
from aegis_protocol.model import Id, Labels, TargetName, UnixSeconds, Wire
from aegis_protocol.states import AgentState, JobState, LeaseState

ChannelText = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
KeyLimits = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=40)],
        Annotated[
            tuple[Annotated[str, StringConstraints(max_length=160)], ...], Field(max_length=256)
        ],
    ],
    Field(max_length=16),
]
"""Words by kind: targets, labels, agents, boards, channels, and jobs (one number)."""
MAX_KEY_LIFE_S: Final = 100 * 366 * 86_400
Sdp = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class ToolchainWish(Wire):
    """kind: platformio or esp-idf; version: a PEP 440 specifier such as `>=6.1`."""

    kind: Id
    version: str = Field(default="", max_length=80)


class Toolchain(Wire):
    """A toolchain that an agent has, with the targets that it can build for."""

    kind: Id
    version: str = Field(max_length=80)
    targets: tuple[TargetName, ...] = Field(default=(), max_length=64)


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


class Reason(Wire):
    """Why a job waits: a code, words, and the agents that it is true of: these and `more`."""

    code: str = Field(max_length=80)
    detail: str = Field(max_length=500)
    agents: tuple[str, ...] = ()
    more: int = Field(default=0, ge=0)

    def __str__(self) -> str:
        """As people read it: `agent.paused: disk 96 % (bench, lab and 3 more)`."""
        named = ", ".join(self.agents) + (f" and {self.more} more" if self.more else "")
        return f"{self.code}: {self.detail}" + (f" ({named})" if named else "")


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
    actions: tuple[Action, ...]
    boards: tuple[Board, ...] = ()
    """The boards that the job holds."""
    ice_servers: tuple[IceServer, ...] = ()


class PendingReply(Wire):
    """202: no agent fits yet. An `assigned` event follows; then ask again with `job_id`."""

    job_id: Id
    state: Literal[JobState.PENDING]
    reasons: tuple[Reason, ...] = ()


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


class TicketRequest(Wire):
    """`POST /events/ticket`. job_id: for this job's stream; without it for `GET /events`."""

    job_id: Id | None = None


class TicketMade(Wire):
    """Serves once, for `stream?ticket=…`, until it expires."""

    ticket: str
    stream: str
    expires_at: UnixSeconds


class Health(Wire):
    status: Literal["ok", "draining", "error"]
    version: str
    protocol: int
    time: UnixSeconds
    store: Literal["ok", "error"]
    policy: Literal["default", "file", "stale"] = "default"
    """Stale: the file as it is now is bad, and an older one counts."""
    agents_online: int


class HealthSessions(Wire):
    """What lives right now: jobs at agents, connections to them, and agents' links."""

    jobs: int
    sessions: int = 0
    links: int
    event_streams: int


class SlowOperation(Wire):
    """A request, or a transaction that reads or writes, that took longer than it should."""

    at: UnixSeconds
    kind: Literal["request", "read", "write"]
    what: str
    took_ms: int


class Replica(Wire):
    """A process that serves this store. here: the one that answers."""

    id: str
    name: str
    version: str
    address: str
    started_at: UnixSeconds
    seen_at: UnixSeconds
    alive: bool
    here: bool


class ControlStatus(Wire):
    """
    How control is doing, for its operators.

    agents, jobs  how many there are in each state
    slow          how many operations took longer than `slow_ms` since it started
    skews_s       by agent: its clock less ours when it linked up, where that was noticed
    """

    pid: int
    version: str
    protocol: int
    started_at: UnixSeconds
    time: UnixSeconds
    base_url: str
    listen: str
    state_dir: str
    store: Literal["sqlite", "postgresql"]
    store_ok: bool
    schema_revision: str | None
    agents: dict[str, int]
    jobs: dict[str, int]
    links: int
    event_streams: int
    file_limit: int
    resident_bytes: int
    slow_ms: int
    slow: dict[str, int]
    slow_recent: tuple[SlowOperation, ...] = ()
    replicas: tuple[Replica, ...] = ()
    skews_s: dict[str, float] = Field(default_factory=dict)


class WhoAmI(Wire):
    """My key. `limits`: what it is limited to, by kind."""

    identity: Id
    role: Role
    actions: tuple[Action, ...]
    limits: KeyLimits = Field(default_factory=dict)
    expires_at: UnixSeconds | None = None


class Job(Wire):
    id: Id
    identity: Id
    state: JobState
    created_at: UnixSeconds
    updated_at: UnixSeconds
    timeout_secs: int
    target: TargetName | None = None
    agent_id: Id | None = None
    agent_name: str | None = None
    attempt: int = 1
    boards: tuple[Id, ...] = ()
    project_key: Id | None = None
    reasons: tuple[Reason, ...] = ()
    error: dict[str, Any] | None = None
    """How it failed, as the error object."""


class JobList(Wire):
    jobs: tuple[Job, ...]


class Agent(Wire):
    id: Id
    name: str
    key: str
    state: AgentState
    reason: str = ""
    """Why it is not usable, where it is not."""
    version: str = ""
    targets: tuple[TargetName, ...] = ()
    toolchains: tuple[Toolchain, ...] = ()
    slots: int = 1
    slots_free: int = 0
    cpu_cores: float = 0
    memory_mb: int = 0
    labels: Labels = Field(default_factory=dict)
    boards: tuple[Board, ...] = ()
    last_seen: UnixSeconds | None = None


class AgentList(Wire):
    agents: tuple[Agent, ...]


class PauseRequest(Wire):
    reason: str = Field(default="", max_length=200)


class DrainRequest(Wire):
    """deadline_secs: in how long what still runs is canceled (0: at once); null: it may finish."""

    reason: str = Field(default="", max_length=200)
    deadline_secs: float | None = Field(default=None, ge=0, le=7 * 86_400)


class BoardRow(Wire):
    """
    A board with the agent that has it.

    holder     the job that has it: the caller's own, or `another`; an operator sees everybody's
    leased_by  who has it by a lease: the caller's own identity, or `another`; as above
    """

    agent_id: Id
    agent_name: str
    agent_state: AgentState
    board: Board
    holder: str | None = None
    leased_by: str | None = None
    leased_until: UnixSeconds | None = None


class LeaseWish(Wire):
    """A board: by id, or by chip and labels; of any agent, or of one (by id or name)."""

    board: BoardWish
    agent_id: Id | None = None


class LeaseRequest(LeaseWish):
    """
    `POST /leases`.

    for_secs   how long the board is wanted
    wait_secs  how long to wait in the queue when none is free; 0: not at all
    """

    for_secs: int = Field(default=1800, ge=1, le=7 * 86_400)
    wait_secs: int = Field(default=0, ge=0, le=86_400)
    note: str = Field(default="", max_length=200)


class RenewRequest(Wire):
    """`POST /leases/{lease_id}/renew`: hold it for so long from now."""

    for_secs: int = Field(ge=1, le=7 * 86_400)


class Lease(Wire):
    """
    A board that somebody has, or waits for.

    holder      the caller's own identity, an operator sees everybody's; else `another`
    expires_at  queued: when it gives up waiting; held: when it ends
    position    queued: how many wait before it for the same boards
    reasons     queued: why no board is there for it
    end         how it ended: released, expired, idle, kicked
    """

    id: Id
    state: LeaseState
    holder: str
    wish: LeaseWish
    note: str = ""
    agent_id: Id | None = None
    agent_name: str | None = None
    board_id: Id | None = None
    fence: int | None = None
    created_at: UnixSeconds
    held_at: UnixSeconds | None = None
    expires_at: UnixSeconds
    position: int | None = None
    reasons: tuple[Reason, ...] = ()
    end: str | None = None


class LeaseList(Wire):
    leases: tuple[Lease, ...]


class BoardList(Wire):
    boards: tuple[BoardRow, ...]


class IssuerKey(Wire):
    """A key that signs grants; `sig` is the previous key's signature over `issuer_statement`."""

    kid: Id
    x: str = Field(max_length=64)
    prev_kid: Id | None = None
    sig: str | None = Field(default=None, max_length=128)


class EnrollRequest(Wire):
    """
    `POST /agents/enroll`.

    token       one-time token, or AGENT_AUTH_SECRET
    public_key  Ed25519, base64url
    signature   over `enroll_statement(sha256 of the token in hex, base_url)`, base64url
    """

    token: str = Field(min_length=1, max_length=256)
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)
    base_url: str = Field(max_length=256)


class EnrollReply(Wire):
    agent_id: Id
    issuer_keys: tuple[IssuerKey, ...]
    server_time: UnixSeconds


class KeyMade(Wire):
    """A new API key; its secret is shown this once."""

    id: Id
    role: Role
    key: str
    name: str = ""
    expires_at: UnixSeconds | None = None
    limits: KeyLimits = Field(default_factory=dict)


class KeyRow(Wire):
    """asked_at: when it last asked for a new job."""

    id: Id
    role: Role
    name: str
    created_at: UnixSeconds
    expires_at: UnixSeconds | None = None
    revoked: bool = False
    limits: KeyLimits = Field(default_factory=dict)
    asked_at: UnixSeconds | None = None


class KeyList(Wire):
    keys: tuple[KeyRow, ...]


class KeyRequest(Wire):
    role: Role
    name: str = Field(default="", max_length=80)
    expires_in_secs: int | None = Field(default=None, ge=1, le=MAX_KEY_LIFE_S)
    limits: KeyLimits = Field(default_factory=dict)


class EnrollTokenRequest(Wire):
    ttl_secs: int = Field(default=3600, ge=10, le=30 * 86_400)
    name: str | None = Field(default=None, max_length=63)


class EnrollTokenMade(Wire):
    """A new enrolment token; its text is shown this once. `id` names it later."""

    id: Id
    token: str
    name: str | None = None
    expires_at: UnixSeconds


class EnrollTokenRow(Wire):
    """name: the only agent that may use it; used_by: the id of the one that did."""

    id: str
    name: str | None = None
    created_at: UnixSeconds
    expires_at: UnixSeconds
    used_by: Id | None = None
    used_at: UnixSeconds | None = None
    revoked: bool = False


class EnrollTokenList(Wire):
    tokens: tuple[EnrollTokenRow, ...]


class RevokeAgentRequest(Wire):
    reason: str = Field(default="", max_length=200)


class Jwk(Wire):
    """RFC 8037 section 2."""

    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA"] = "EdDSA"
    kid: Id
    x: str


class Jwks(Wire):
    keys: tuple[Jwk, ...]


class PolicyCheckRequest(Wire):
    """
    `POST /services/policy/check`: what would be decided.

    key_id        a key's id, or `mcp`
    role, limits  decide as for a key of that id with this role and these limits, instead of
                  those that it has (it need not be there)
    """

    key_id: Id = "anybody"
    role: Role | None = None
    limits: KeyLimits = Field(default_factory=dict)
    wish: GrantWish


class PolicyReason(Wire):
    """rule: whose word it is: a policy rule, a key's limit, a role, a setting, the request."""

    rule: str
    code: str
    message: str
    remedy: str


class PolicyDecision(Wire):
    """
    rule    what decided
    limits  which agents and boards the job may get, and how many jobs at once, by kind
    error   what the real request would be refused with

    A limit of 0 is none.
    """

    identity: Id
    role: Role
    allowed: bool
    rule: str
    reasons: tuple[PolicyReason, ...] = ()
    channels: tuple[ChannelText, ...] = ()
    actions: tuple[Action, ...] = ()
    max_bandwidth_kbps: int
    max_message_rate: int
    max_job_secs: int
    limits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    error: dict[str, Any] | None = None


class PolicyShown(Wire):
    """
    The policy in force. file: where it came from; none: there is no rule, the defaults count.

    trouble  what is wrong with the file as it is now; the policy shown is the older one
    """

    file: str | None = None
    loaded_at: UnixSeconds
    sha256: str
    rules: tuple[dict[str, Any], ...] = ()
    trouble: dict[str, Any] | None = None


class GrantRow(Wire):
    """
    A grant and what became of it.

    state   unused (and still good), expired (never used), offered, revoked, open, closed
    code    the error that closed its connection, where one did
    source  the address that asked for it
    """

    jti: Id
    job_id: Id
    identity: Id
    agent_id: Id
    agent_name: str | None = None
    channels: tuple[ChannelText, ...] = ()
    actions: tuple[Action, ...] = ()
    source: str | None = None
    state: Literal["unused", "expired", "offered", "revoked", "open", "closed"]
    issued_at: UnixSeconds
    expires_at: UnixSeconds
    offered_at: UnixSeconds | None = None
    opened_at: UnixSeconds | None = None
    closed_at: UnixSeconds | None = None
    revoked_at: UnixSeconds | None = None
    """It, its job or its key was revoked; an agent that is away has not heard of it yet."""
    code: str | None = None


class GrantList(Wire):
    grants: tuple[GrantRow, ...]


class SessionRow(Wire):
    """A connection between a client and an agent. ends_at: its job's time is over then."""

    jti: Id
    job_id: Id
    identity: Id
    agent_id: Id
    agent_name: str | None = None
    channels: tuple[ChannelText, ...] = ()
    source: str | None = None
    opened_at: UnixSeconds
    revoked_at: UnixSeconds | None = None
    ends_at: UnixSeconds | None = None


class SessionList(Wire):
    sessions: tuple[SessionRow, ...]


class VerifyTokenRequest(Wire):
    """token: an API key, a grant, an enrolment token or a shared secret."""

    token: str = Field(min_length=1, max_length=16_384)


class TokenVerdict(Wire):
    """
    What a secret is. why: in words, why it is good or not; code: the error that it would meet.

    name  the key's; of a token the agent that it is for; of a grant its agent's
    """

    kind: Literal["key", "shared_secret", "agent_secret", "enroll_token", "grant", "unknown"]
    valid: bool
    why: str
    code: str | None = None
    id: str | None = None
    name: str | None = None
    identity: Id | None = None
    role: Role | None = None
    actions: tuple[Action, ...] = ()
    channels: tuple[ChannelText, ...] = ()
    limits: KeyLimits = Field(default_factory=dict)
    job_id: Id | None = None
    job_state: JobState | None = None
    agent_id: Id | None = None
    target: TargetName | None = None
    boards: tuple[Id, ...] = ()
    peer_fingerprint: str | None = None
    issued_at: UnixSeconds | None = None
    expires_at: UnixSeconds | None = None


class RevokeRequest(Wire):
    """`POST /services/revocations`. id: a grant's jti, a job's id, a key's id."""

    kind: Literal["grant", "job", "key"]
    id: Id
    reason: str = Field(default="", max_length=200)


class RevocationRow(Wire):
    """What one agent was told to end. state: done, or pending: revoked, but not yet there."""

    seq: int
    kind: Literal["grant", "job", "key"]
    id: Id
    agent_id: Id
    agent_name: str
    job_id: Id | None = None
    reason: str = ""
    by: str
    at: UnixSeconds
    state: Literal["done", "pending"]


class RevocationList(Wire):
    revocations: tuple[RevocationRow, ...]


class IssuerKeyRow(Wire):
    """
    A key of the issuer. state: signing; next, trusted and about to sign; valid, its grants still
    count; past, only part of the chain.
    """

    kid: Id
    x: str = Field(max_length=64)
    prev_kid: Id | None = None
    made_at: UnixSeconds
    signs_at: UnixSeconds
    state: Literal["signing", "next", "valid", "past"]


class IssuerKeyList(Wire):
    keys: tuple[IssuerKeyRow, ...]
