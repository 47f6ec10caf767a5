"""Board leases, and what operators ordered of agents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "agents", sa.Column("ordered", sa.String(16), nullable=False, server_default="none")
    )
    op.add_column(
        "agents", sa.Column("ordered_reason", sa.String(200), nullable=False, server_default="")
    )
    op.add_column("agents", sa.Column("ordered_until", sa.Double))
    op.add_column("agents", sa.Column("resets", sa.Integer, nullable=False, server_default="0"))
