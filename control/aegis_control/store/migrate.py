"""Which version a database's tables have, and how they come to ours; the steps are migrations/."""

from __future__ import annotations

from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from aegis_control.store.failures import SchemaNewer


@dataclass(frozen=True)
class Schema:
    """
    current  the tables' revision; None: there are no tables of ours
    newest   the newest revision that this version knows
    missing  the revisions in between, in their order
    """

    current: str | None
    newest: str
    missing: tuple[str, ...]


def schema(connection: Connection) -> Schema:
    """What the tables are, and what they lack. SchemaNewer when this version is too old for it."""
    scripts = ScriptDirectory.from_config(_config(connection))
    current = MigrationContext.configure(connection).get_current_revision()
    newest = scripts.get_current_head() or ""
    known = [step.revision for step in scripts.walk_revisions()][::-1]
    if current is not None and current not in known:
        raise SchemaNewer(
            f"the tables are of revision {current}, and this version knows them up to {newest}",
            current=current,
            newest=newest,
        )
    there = 0 if current is None else known.index(current) + 1
    return Schema(current, newest, tuple(known[there:]))


def revision(connection: Connection) -> str | None:
    """The tables' revision, whether this version knows it or not; None: no tables of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> Schema:
    """
    Run the missing migrations on `connection`, in its transaction; returns what was before.

    Raises SchemaNewer.
    """
    before = schema(connection)
    if before.missing:
        command.upgrade(_config(connection), "head")
    return before


def upgrade_to(connection: Connection, revision: str) -> None:
    """Run the migrations up to `revision` only."""
    command.upgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "aegis_control.store:migrations")
    config.attributes["connection"] = connection
    return config
