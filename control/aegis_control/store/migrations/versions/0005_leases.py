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

    op.add_column("board_fences", sa.Column("lease_id", sa.String(80)))
    op.add_column("board_fences", sa.Column("lease_identity", sa.String(80)))
    op.add_column("board_fences", sa.Column("freed_at", sa.Double))
    op.add_column("board_fences", sa.Column("kicked", sa.String(8)))
    op.create_index("ix_board_fences_lease_id", "board_fences", ["lease_id"])

    op.create_table(
        "board_leases",
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("identity", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wish", sa.JSON, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("for_s", sa.Double, nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("agent_id", sa.String(80)),
        sa.Column("board_id", sa.String(80)),
        sa.Column("fence", sa.BigInteger),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("held_at", sa.Double),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("end", sa.String(16)),
        sa.PrimaryKeyConstraint("id", name="pk_board_leases"),
    )
    op.create_index("ix_board_leases_state_created_at", "board_leases", ["state", "created_at"])
    op.create_index("ix_board_leases_identity_state", "board_leases", ["identity", "state"])
