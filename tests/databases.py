"""
Databases for tests: SQLite in the test's own folder, and a real PostgreSQL.

    database_url    the URL of an empty database; the test runs once with each kind of database
    postgres_url    the URL of an empty PostgreSQL database
    store_kind      what the controls have that `control_fixtures` starts: SQLite, and with
                    `pytestmark = pytest.mark.both_stores` PostgreSQL too, in `make test-long`
    a_server()      a PostgreSQL of the test's own, to stop and start again

One server per run (or worker), see `bench.postgres`. A module that uses a fixture here imports it
and those that it stands on (`from databases import database_kind, database_url`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from bench import postgres as own_server
from bench.postgres import Postgres

KINDS: Final = ("sqlite", "postgresql")
_MIGRATED: Final = "migrated"

_NAMES: Final = itertools.count()
_RUN: Final[list[tuple[Postgres, contextlib.ExitStack]]] = []
"""The run's server, once a test wanted one, and what stops it."""
_OF_STATES: Final[list[_OfStates]] = []
"""Of the test that runs, when its controls keep what they know in PostgreSQL."""


@contextlib.contextmanager
def a_server() -> Iterator[Postgres]:
    """A PostgreSQL that runs; skipped where there is none."""
    lacks = own_server.missing()
    if lacks is not None:
        pytest.skip(f"{lacks} is needed and not here")
    with own_server.a_server(durable=False) as server:
        yield server


@contextlib.contextmanager
def _database(server: Postgres, *, template: str = "template1") -> Iterator[str]:
    """The URL of an empty database, or of a copy of `template`, that goes with the block."""
    name = f"test_{next(_NAMES)}"
    server.run("createdb", "-T", template, name)
    try:
        yield server.url(name)
    finally:
        server.run("dropdb", "--force", name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The run's server; every module that imports this has the same one."""
    if not _RUN:
        stack = contextlib.ExitStack()
        _RUN.append((stack.enter_context(a_server()), stack))
    yield _RUN[0][0]
    _RUN[0][1].close()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    with _database(postgres) as url:
        yield url


@pytest.fixture(scope="session", params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    """`sqlite` or `postgresql`; the server starts before a test that will use it."""
    kind = str(request.param)
    if kind == "postgresql":
        request.getfixturevalue("postgres")
    return kind


def store_of(state: Path) -> str | None:
    """The database of a control that has this state folder; None: the SQLite in there."""
    return _OF_STATES[-1].url(state) if _OF_STATES else None


@dataclass
class _OfStates:
    """A database for each state folder, the same when a control is started there again."""

    server: Postgres
    stack: contextlib.ExitStack
    urls: dict[Path, str] = field(default_factory=dict)

    def url(self, state: Path) -> str:
        if state not in self.urls:
            self.urls[state] = self.stack.enter_context(_database(self.server, template=_MIGRATED))
        return self.urls[state]


@pytest.fixture(scope="session")
def store_kind(request: pytest.FixtureRequest) -> str:
    """What `conftest` chose for this run of the test; the server starts before it."""
    kind = str(getattr(request, "param", KINDS[0]))
    if kind == "postgresql":
        _migrate(request.getfixturevalue("postgres"))
    return kind


def _migrate(server: Postgres) -> None:
    """Make the tables once, to be copied."""
    # imported here: every run imports this file, and few need a store
    from aegis_control.store.database import bring_up_to_date

    if server.run("psql", "-d", _MIGRATED, "-c", "", check=False).returncode != 0:
        server.run("createdb", _MIGRATED)
        asyncio.run(bring_up_to_date(server.url(_MIGRATED)))


@pytest.fixture(autouse=True)
def stores(request: pytest.FixtureRequest, store_kind: str) -> Iterator[None]:
    if store_kind == "sqlite":
        yield
        return
    with contextlib.ExitStack() as stack:
        _OF_STATES.append(_OfStates(request.getfixturevalue("postgres"), stack))
        try:
            yield
        finally:
            _OF_STATES.pop()


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp: Path) -> Iterator[str]:
    if database_kind == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp / 'control.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with _database(server) as url:
        yield url
