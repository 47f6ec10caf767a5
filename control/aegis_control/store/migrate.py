"""Brings a database to the newest version of the tables; the versions are in migrations/."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def upgrade(connection: Connection) -> None:
    """Run the missing migrations on `connection`, in its transaction."""
    config = Config()
    config.set_main_option("script_location", "aegis_control.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
