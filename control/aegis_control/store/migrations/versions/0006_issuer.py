"""The issuer's keys, the grants that were signed, and what was revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("jti", sa.String(80), nullable=False),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("identity", sa.String(80), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_grants"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_grants_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_grants_job_id_at", "grants", ["job_id", "at"])
    op.create_index("ix_grants_identity_at", "grants", ["identity", "at"])
    op.create_table(
        "revocations",
        sa.Column("seq", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("what", sa.String(80), nullable=False),
        sa.Column("job_id", sa.String(80)),
        sa.Column("item", sa.JSON, nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("by", sa.String(80), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_revocations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_revocations_agent_id_seq", "revocations", ["agent_id", "seq"])
    op.create_index("ix_revocations_kind_what", "revocations", ["kind", "what"])
    op.add_column(
        "agents",
        sa.Column("revoked_through", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "issuer_keys",
        sa.Column("number", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("kid", sa.String(80), nullable=False),
        sa.Column("x", sa.String(64), nullable=False),
        sa.Column("prev_kid", sa.String(80)),
        sa.Column("sig", sa.String(128)),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("signs_at", sa.Double, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.PrimaryKeyConstraint("number", name="pk_issuer_keys"),
        sa.UniqueConstraint("kid", name="uq_issuer_keys_kid"),
        sqlite_autoincrement=True,
    )
