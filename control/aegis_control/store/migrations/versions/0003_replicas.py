"""Replicas of control: who serves which agent, and frames on their way between them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("address", sa.String(200), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_replicas"),
    )
    op.create_table(
        "agent_links",
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("replica_id", sa.String(80), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agent_links"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_links_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_agent_links_replica_id", "agent_links", ["replica_id"])
    op.create_table(
        "agent_frames",
        sa.Column("id", _SERIAL, nullable=False, autoincrement=True),
        sa.Column("agent_id", sa.String(80), nullable=False),
        sa.Column("frame", sa.JSON, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agent_frames"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_frames_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_agent_frames_agent_id_id", "agent_frames", ["agent_id", "id"])
    op.create_index("ix_agent_frames_at", "agent_frames", ["at"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("mark", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.add_column("jobs", sa.Column("client_seen", sa.Double))
