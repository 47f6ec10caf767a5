"""
A PostgreSQL server of one's own, for a measurement or for tests: in a temporary folder, on a Unix
socket, as an unprivileged user, for initdb refuses root. It dies with us, however we die.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

READY_S: Final = 60.0
_USER: Final = "nobody"
_CHEAP: Final = (
    *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "autovacuum=off"),
    *("-c", "shared_buffers=16MB"),
)


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs: the newest of Debian's, or where PATH has them."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(debian, key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    in_path = shutil.which("initdb")
    return None if in_path is None else Path(in_path).resolve().parent


def missing() -> str | None:
    """What is not here that `a_server` needs; None when all is."""
    if binaries() is None:
        return "PostgreSQL's programs (Debian: postgresql)"
    if shutil.which("setpriv") is None:
        return "setpriv (Debian: util-linux)"
    return None if find_spec("asyncpg") is not None else "asyncpg"


@dataclass
class Postgres:
    """
    A server, its data in `folder`. `stop` and `start` as often as you like.

    durable  commits wait for the disk, as they do where it matters
    """

    folder: Path
    programs: Path
    durable: bool
    process: subprocess.Popen[bytes] | None = field(default=None)

    def url(self, name: str = "postgres") -> str:
        return f"postgresql+asyncpg://aegis@/{name}?host={self.folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=QUIT", *_unprivileged()),
                    *(str(self.programs / "postgres"), "-D", str(self.folder / "data")),
                    *("-k", str(self.folder), "-c", "listen_addresses="),
                    *("-c", "max_connections=150"),
                    *(() if self.durable else _CHEAP),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + READY_S
        while self.run("psql", "-d", "postgres", "-qc", "", check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ConnectionError(f"PostgreSQL does not start: {self.log()}")
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

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def a_server(*, durable: bool) -> Iterator[Postgres]:
    """A PostgreSQL that runs. FileNotFoundError where something for it is `missing`."""
    programs = binaries()
    if programs is None or (lacks := missing()) is not None:
        raise FileNotFoundError(f"not installed: {lacks or 'PostgreSQL'}")
    folder = Path(tempfile.mkdtemp(prefix="aegis-pg-"))
    server = Postgres(folder, programs, durable)
    try:
        if os.geteuid() == 0:
            os.chown(folder, _owner().pw_uid, _owner().pw_gid)
        words = ["-U", "aegis", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [
                *("setpriv", *_unprivileged()),
                *(str(programs / "initdb"), "-D", str(folder / "data"), *words),
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


def _unprivileged() -> list[str]:
    """What `setpriv` is told, so that the command is an ordinary user's, whoever we are."""
    if os.geteuid() != 0:
        return []
    return [f"--reuid={_owner().pw_uid}", f"--regid={_owner().pw_gid}", "--clear-groups"]


def _owner() -> pwd.struct_passwd:
    return pwd.getpwnam(_USER)
