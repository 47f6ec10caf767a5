"""The tables. Migrations build them; a test compares the two."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_SERIAL: Final = BigInteger().with_variant(Integer(), "sqlite")

keys: Final = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("role", String(16), nullable=False),
    Column("name", String(80), nullable=False),
    Column("limits", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

identities: Final = Table(
    "identities",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("asked_at", Double, nullable=False),
)

enroll_tokens: Final = Table(
    "enroll_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("id", String(32), nullable=False, server_default="", index=True),
    Column("name", String(63)),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_by", String(80)),
    Column("used_at", Double),
    Column("revoked_at", Double),
)

agents: Final = Table(
    "agents",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("enrolled_at", Double, nullable=False),
    Column("link_epoch", BigInteger, nullable=False),
    Column("last_seen", Double),
    Column("hello", JSON),
    Column("ordered", String(16), nullable=False, server_default="none"),
    Column("ordered_reason", String(200), nullable=False, server_default=""),
    Column("ordered_until", Double),
    Column("resets", Integer, nullable=False, server_default="0"),
    Column("revoked_through", BigInteger, nullable=False, server_default="0"),
    Column("arrivals", JSON),
    Column("cloned", Boolean, nullable=False, server_default=false()),
    Column("revoked_at", Double),
    Column("revoked_reason", String(200), nullable=False, server_default=""),
)

replicas: Final = Table(
    "replicas",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("name", String(120), nullable=False),
    Column("version", String(40), nullable=False),
    Column("address", String(200), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

agent_links: Final = Table(
    "agent_links",
    metadata,
    Column("agent_id", String(80), ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("replica_id", String(80), nullable=False, index=True),
    Column("epoch", BigInteger, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("ended_at", Double),
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("mark", LargeBinary, nullable=False),
    Column("sealed", LargeBinary),
)

agent_frames: Final = Table(
    "agent_frames",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("agent_id", String(80), ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("frame", JSON, nullable=False),
    Column("at", Double, nullable=False, index=True),
    Index(None, "agent_id", "id"),
)

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("identity", String(80), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("request", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("agent_id", String(80)),
    Column("boards", JSON, nullable=False),
    Column("candidates", JSON, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("error", JSON),
    Column("returns", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("assigned_at", Double),
    Column("ends_at", Double),
    Column("client_seen", Double),
    Index(None, "state"),
    Index(None, "identity", "created_at"),
    Index(None, "agent_id", "state"),
)

board_fences: Final = Table(
    "board_fences",
    metadata,
    Column("agent_id", String(80), primary_key=True),
    Column("board_id", String(80), primary_key=True),
    Column("fence", BigInteger, nullable=False),
    Column("job_id", String(80), index=True),
    Column("lease_id", String(80), index=True),
    Column("lease_identity", String(80)),
    Column("freed_at", Double),
    Column("kicked", String(8)),
)

board_leases: Final = Table(
    "board_leases",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("identity", String(80), nullable=False),
    Column("state", String(16), nullable=False),
    Column("wish", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("for_s", Double, nullable=False),
    Column("note", String(200), nullable=False),
    Column("agent_id", String(80)),
    Column("board_id", String(80)),
    Column("fence", BigInteger),
    Column("created_at", Double, nullable=False),
    Column("held_at", Double),
    Column("expires_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("end", String(16)),
    Index(None, "state", "created_at"),
    Index(None, "identity", "state"),
)

offers: Final = Table(
    "offers",
    metadata,
    Column("jti", String(80), primary_key=True),
    Column("job_id", String(80), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("agent_id", String(80), nullable=False),
    Column("at", Double, nullable=False),
    Column("client_candidates", Integer, nullable=False),
    Column("agent_candidates", Integer, nullable=False),
    Index(None, "job_id", "at"),
)

grants: Final = Table(
    "grants",
    metadata,
    Column("jti", String(80), primary_key=True),
    Column("job_id", String(80), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("agent_id", String(80), nullable=False),
    Column("identity", String(80), nullable=False),
    Column("at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("channels", JSON),
    Column("actions", JSON),
    Column("source", String(64)),
    Column("opened_at", Double),
    Column("closed_at", Double),
    Column("closed_code", String(80)),
    Index(None, "job_id", "at"),
    Index(None, "identity", "at"),
    Index(None, "at"),
)

issuer_keys: Final = Table(
    "issuer_keys",
    metadata,
    Column("number", _SERIAL, primary_key=True, autoincrement=True),
    Column("kid", String(80), nullable=False, unique=True),
    Column("x", String(64), nullable=False),
    Column("prev_kid", String(80)),
    Column("sig", String(128)),
    Column("made_at", Double, nullable=False),
    Column("signs_at", Double, nullable=False),
    Column("sealed", LargeBinary),
    sqlite_autoincrement=True,
)

revocations: Final = Table(
    "revocations",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("agent_id", String(80), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("what", String(80), nullable=False),
    Column("job_id", String(80)),
    Column("item", JSON, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("by", String(80), nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "agent_id", "seq"),
    Index(None, "kind", "what"),
    sqlite_autoincrement=True,
)

job_events: Final = Table(
    "job_events",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("job_id", String(80), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(32), nullable=False),
    Column("at", Double, nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "job_id", "id"),
    sqlite_autoincrement=True,
)

fleet_events: Final = Table(
    "fleet_events",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("type", String(32), nullable=False),
    Column("at", Double, nullable=False, index=True),
    Column("identity", String(80)),
    Column("targets", JSON, nullable=False),
    Column("project_key", String(80)),
    Column("board_id", String(80)),
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)

event_tickets: Final = Table(
    "event_tickets",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("identity", JSON, nullable=False),
    Column("stream", String(200), nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

idempotency: Final = Table(
    "idempotency",
    metadata,
    Column("identity", String(80), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("body_digest", LargeBinary, nullable=False),
    Column("job_id", String(80), nullable=False),
    Column("at", Double, nullable=False, index=True),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("what", String(64), nullable=False),
    Column("who", String(80), nullable=False),
    Column("source", String(64)),
    Column("decision", String(16), nullable=False),
    Column("rule", String(200)),
    Column("job_id", String(80), index=True),
    Column("agent_id", String(80)),
    Column("board_id", String(80)),
    Column("artifact_sha256", String(64)),
    Column("outcome", String(500)),
    Column("facts", JSON, nullable=False),
    Column("seq", BigInteger, unique=True),
    Column("hash", LargeBinary),
    Index(None, "who", "seq"),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

audit_heads: Final = Table(
    "audit_heads",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
    Column("kid", String(80), nullable=False),
    Column("x", LargeBinary, nullable=False),
    Column("sig", LargeBinary, nullable=False),
    Index(None, "kind", "seq"),
    sqlite_autoincrement=True,
)
