"""Replicas of control: who serves which agent, and frames on their way between them."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    pass
