"""The first tables: keys, tokens, agents, jobs, boards, offers, events, idempotency."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "enroll_tokens",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.String(63)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_by", sa.String(80)),
        sa.Column("used_at", sa.Double),
        sa.PrimaryKeyConstraint("digest", name="pk_enroll_tokens"),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("enrolled_at", sa.Double, nullable=False),
        sa.Column("link_epoch", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.Double),
        sa.Column("hello", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("name", name="uq_agents_name"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("identity", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("agent_id", sa.String(80)),
        sa.Column("boards", sa.JSON, nullable=False),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("returns", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("assigned_at", sa.Double),
        sa.Column("ends_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_identity_created_at", "jobs", ["identity", "created_at"])
    op.create_index("ix_jobs_agent_id_state", "jobs", ["agent_id", "state"])
    op.create_table(
        "board_fences",
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("board_id", sa.String(80), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String(80)),
        sa.PrimaryKeyConstraint("agent_id", "board_id", name="pk_board_fences"),
    )
    op.create_index("ix_board_fences_job_id", "board_fences", ["job_id"])
    op.create_table(
        "offers",
        sa.Column("jti", sa.String(80), nullable=False),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("client_candidates", sa.Integer, nullable=False),
        sa.Column("agent_candidates", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_offers"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_offers_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_offers_job_id_at", "offers", ["job_id", "at"])
    op.create_table(
        "job_events",
        sa.Column("id", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_events"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_job_events_job_id", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job_id_id", "job_events", ["job_id", "id"])
    op.create_table(
        "idempotency",
        sa.Column("identity", sa.String(80), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("body_digest", sa.LargeBinary, nullable=False),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("identity", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_at", "idempotency", ["at"])
