"""Sessions, tokens that can be named, agents that were revoked or have one key between two."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("agents", sa.Column("arrivals", sa.JSON))
    op.add_column(
        "agents", sa.Column("cloned", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.add_column("agents", sa.Column("revoked_at", sa.Double))
    op.add_column(
        "agents", sa.Column("revoked_reason", sa.String(200), nullable=False, server_default="")
    )
    op.add_column(
        "enroll_tokens", sa.Column("id", sa.String(32), nullable=False, server_default="")
    )
    op.add_column("enroll_tokens", sa.Column("revoked_at", sa.Double))
    op.create_index("ix_enroll_tokens_id", "enroll_tokens", ["id"])
    for name, kind in (
        ("channels", sa.JSON()),
        ("actions", sa.JSON()),
        ("source", sa.String(64)),
        ("opened_at", sa.Double()),
        ("closed_at", sa.Double()),
        ("closed_code", sa.String(80)),
    ):
        op.add_column("grants", sa.Column(name, kind))
    op.create_index("ix_grants_at", "grants", ["at"])
