"""The audit log, and events for everybody who may see them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("who", sa.String(80), nullable=False),
        sa.Column("source", sa.String(64)),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("rule", sa.String(200)),
        sa.Column("job_id", sa.String(80)),
        sa.Column("agent_id", sa.String(80)),
        sa.Column("board_id", sa.String(80)),
        sa.Column("artifact_sha256", sa.String(64)),
        sa.Column("outcome", sa.String(500)),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("seq", sa.BigInteger),
        sa.Column("hash", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sa.UniqueConstraint("seq", name="uq_audit_seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_job_id", "audit", ["job_id"])
    op.create_index("ix_audit_who_seq", "audit", ["who", "seq"])
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_table(
        "audit_heads",
        sa.Column("id", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kid", sa.String(80), nullable=False),
        sa.Column("x", sa.LargeBinary, nullable=False),
        sa.Column("sig", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_heads"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_heads_kind_seq", "audit_heads", ["kind", "seq"])
    _guard()
    op.create_table(
        "fleet_events",
        sa.Column("id", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("identity", sa.String(80)),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("project_key", sa.String(80)),
        sa.Column("board_id", sa.String(80)),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_fleet_events_at", "fleet_events", ["at"])
    op.create_table(
        "event_tickets",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("identity", sa.JSON, nullable=False),
        sa.Column("stream", sa.String(200), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_event_tickets"),
    )
    op.create_index("ix_event_tickets_expires_at", "event_tickets", ["expires_at"])


_UNPRUNED = "SELECT coalesce(max(seq), 0) FROM audit_heads WHERE kind = 'checkpoint'"


def _guard() -> None:
    """Sealed records are not written again, and only what a checkpoint stands for is deleted."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER audit_written_once BEFORE UPDATE ON audit WHEN OLD.seq IS NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
        )
        op.execute(
            "CREATE TRIGGER audit_kept BEFORE DELETE ON audit "
            f"WHEN OLD.seq IS NULL OR OLD.seq > ({_UNPRUNED}) "
            "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_written_once BEFORE UPDATE ON audit FOR EACH ROW "
        "WHEN (OLD.seq IS NOT NULL) EXECUTE FUNCTION audit_refuse()"
    )
    op.execute(
        "CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF OLD.seq IS NULL OR OLD.seq > ({_UNPRUNED}) THEN "
        "RAISE EXCEPTION 'the audit is append-only'; END IF; RETURN OLD; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_kept BEFORE DELETE ON audit FOR EACH ROW "
        "EXECUTE FUNCTION audit_keep()"
    )
