"""
Databases for tests: SQLite in the test's own folder, and a real PostgreSQL.

    database_url    the URL of an empty database; the test runs once with each kind of database
    postgres_url    the URL of an empty PostgreSQL database
    a_server()      a PostgreSQL of the test's own, to stop and start again

One server per run (or worker), see `bench.postgres`. A module that uses a fixture here imports it
and those that it stands on (`from databases import database_kind, database_url`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from bench import postgres as own_server
from bench.postgres import Postgres

KINDS: Final = ("sqlite", "postgresql")

_NAMES: Final = itertools.count()
_RUN: Final[list[tuple[Postgres, contextlib.ExitStack]]] = []
"""The run's server, once a test wanted one, and what stops it."""


@contextlib.contextmanager
def a_server() -> Iterator[Postgres]:
    """A PostgreSQL that runs; skipped where there is none."""
    lacks = own_server.missing()
    if lacks is not None:
        pytest.skip(f"{lacks} is needed and not here")
    with own_server.a_server(durable=False) as server:
        yield server


@contextlib.contextmanager
def _database(server: Postgres) -> Iterator[str]:
    """The URL of an empty database that goes with the block."""
    name = f"test_{next(_NAMES)}"
    server.run("createdb", name)
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


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp: Path) -> Iterator[str]:
    if database_kind == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp / 'control.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with _database(server) as url:
        yield url
