"""
Databases for tests: SQLite in the test's own folder, and a real PostgreSQL.

    database_url    the URL of an empty database; the test runs once with each kind of database
    postgres_url    the URL of an empty PostgreSQL database
    a_server()      a PostgreSQL of the test's own, to stop and start again

One server per run (or worker) lies in a temporary folder, on a Unix socket, as an unprivileged
user, for initdb refuses root. It dies with us, however we die. A module that uses a fixture here
imports it and those that it stands on (`from databases import database_kind, database_url`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from house import as_nobody, give_to_nobody

READY_S: Final = 60.0
KINDS: Final = ("sqlite", "postgresql")

_NAMES: Final = itertools.count()
_RUN: Final[list[tuple[Postgres, contextlib.ExitStack]]] = []
"""The run's server, once a test wanted one, and what stops it."""


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs: the newest of Debian's, or where PATH has them."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(debian, key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    in_path = shutil.which("initdb")
    return None if in_path is None else Path(in_path).resolve().parent


@dataclass
class Postgres:
    """A server, its data in `folder`. `stop` and `start` as often as you like."""

    folder: Path
    programs: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def url(self, name: str = "postgres") -> str:
        return f"postgresql+asyncpg://aegis@/{name}?host={self.folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        owner = ["setpriv", "--pdeathsig=QUIT", *as_nobody()[1:]]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    *owner,
                    *(str(self.programs / "postgres"), "-D", str(self.folder / "data")),
                    *("-k", str(self.folder), "-c", "listen_addresses="),
                    *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "autovacuum=off"),
                    *("-c", "max_connections=150", "-c", "shared_buffers=16MB"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + READY_S
        while self.run("psql", "-d", "postgres", "-qc", "", check=False).returncode != 0:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once, as a machine that loses its power."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
            self.process = None

    def run(
        self, program: str, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of PostgreSQL's programs against this server."""
        return subprocess.run(
            [str(self.programs / program), "-h", str(self.folder), "-U", "aegis", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READY_S,
            check=check,
        )

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database that goes with the block."""
        name = f"test_{next(_NAMES)}"
        self.run("createdb", name)
        try:
            yield self.url(name)
        finally:
            self.run("dropdb", "--force", name)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def a_server() -> Iterator[Postgres]:
    """A PostgreSQL that runs; skipped where there is none."""
    programs = binaries()
    if programs is None or shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL is needed and not here")
    folder = Path(tempfile.mkdtemp(prefix="aegis-pg-"))
    server = Postgres(folder, programs)
    try:
        if os.geteuid() == 0:
            give_to_nobody(folder)
        subprocess.run(
            [
                *as_nobody(),
                *(str(programs / "initdb"), "-D", str(folder / "data"), "-U", "aegis"),
                *("-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READY_S,
            check=True,
            cwd=folder,
        )
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


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
    with postgres.database() as url:
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
    with server.database() as url:
        yield url
