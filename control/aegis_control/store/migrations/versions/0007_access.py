"""What tells an agent's two processes apart that have the same key."""

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
