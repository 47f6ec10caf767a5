"""The issuer's keys, the grants that were signed, and what was revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


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
