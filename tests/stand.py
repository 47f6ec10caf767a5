"""
A whole Aegis for a test: the real programs, each a process, on this machine's own addresses.

    stand    control is up; `stand.agent(…)` adds an agent, `stand.espctl(…)` runs the client

Everything lies in one temporary folder and ends with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

BIN: Final = Path(sys.executable).parent
ROOT: Final = Path(__file__).parents[1]
FIXTURES: Final = ROOT / "firmware_fixtures"
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  other hosts of a test come by a cable of their own
READY_S: Final = 30.0
COMMAND_S: Final = 90.0
_ANSI: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")


@dataclass
class Program:
    """A process that runs; its output goes to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, again after 2 s, SIGKILL to the group after 10 s more."""
        for patience_s in (2.0, 10.0):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience_s)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


@dataclass
class Done:
    """A command that ended. `out` and `err` have no ANSI escapes; `raw` has."""

    code: int
    out: str
    err: str
    raw: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object that `--json` printed on stderr."""
        found = json.loads(self.err.strip().splitlines()[-1])["error"]
        assert isinstance(found, dict)
        return found

    def expect(self, code: int = 0) -> Done:
        assert self.code == code, f"exit {self.code}, not {code}\n{self.out}\n{self.err}"
        return self


@dataclass
class Stand:
    """One control, its agents, boards and clients."""

    folder: Path
    platformio_home: Path
    port: int
    programs: list[Program] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    listen: str = "127.0.0.1"
    """Where control listens."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self, **more: str) -> dict[str, str]:
        """What a program gets: nothing of the machine's own settings."""
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            "CONTROL_BASE_URL": self.url,
            "CONTROL_PUBLIC_BASE_URL": self.url,
            "AEGIS_PLATFORMIO_HOME": str(self.platformio_home),
            "AEGIS_DISCOVER_BOARDS": "0",
            # Limits on processes count by user: stands side by side must not share one.
            "AEGIS_BUILD_UID_BASE": str(10_000 + self.port % 5000 * 10),
            **self.settings,
            **more,
        }

    def start(self, name: str, *command: str, **env: str) -> Program:
        """`command` begins with one of ours, or with the path of another program."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env(**env),
                start_new_session=True,
            )
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    def run(self, *command: str, input: str = "", **env: str) -> Done:
        """Run a command to its end, `COMMAND_S` at most."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            input=input.encode(),
            capture_output=True,
            env=self.env(**env),
            timeout=COMMAND_S,
            check=False,
            cwd=self.folder,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return Done(done.returncode, _ANSI.sub("", out), _ANSI.sub("", err), out + err)

    def control(self) -> Program:
        """Start control and wait until it answers."""
        program = self.start(
            "control",
            *("aegis-control", "serve", "--listen", f"{self.listen}:{self.port}"),
            AEGIS_STATE_DIR=str(self.folder / "control"),
        )
        self.until(lambda: self._answers(), "control", program)
        return program

    def admin(self, *words: str) -> Done:
        """A command of aegis-control on the control host."""
        return self.run("aegis-control", *words, AEGIS_STATE_DIR=str(self.folder / "control"))

    def key(self, role: str) -> str:
        made = self.admin("keys", "create", "--role", role, "--json").expect().json
        return str(made["key"])

    def agent(
        self, name: str = "agent", *, slots: int = 1, boards: Sequence[str] = (), **env: str
    ) -> Program:
        """Enrol and start an agent; boards are `[[boards]]` tables of agent.toml."""
        state = self.folder / name
        state.mkdir(exist_ok=True)
        (state / "agent.toml").write_text("\n".join(boards))
        env |= {"AEGIS_STATE_DIR": str(state), "AEGIS_AGENT_NAME": name, "AEGIS_SLOTS": str(slots)}
        if not (state / "enrollment.json").exists():
            token = self.admin("enroll-token", "create", "--json").expect().json["token"]
            self.run("aegis-agent", "enroll", AEGIS_ENROLL_TOKEN=token, **env).expect()
        program = self.start(name, "aegis-agent", "run", **env)
        self.until(lambda: self.agent_row(name)["state"] == "online", name, program)
        return program

    def agent_row(self, name: str) -> dict[str, Any]:
        rows = self.admin("list-agents", "--json").expect().json["agents"]
        return next((row for row in rows if row["name"] == name), {"state": "absent"})

    def virtual_board(self, name: str, chip: str, *flags: str) -> str:
        """Start a virtual board and return its `[[boards]]` table for agent.toml."""
        path = self.folder / f"{name}.sock"
        program = self.start(
            name, "aegis-agent", "virtual-board", "--chip", chip, "--listen", str(path), *flags
        )
        self.until(path.exists, name, program)
        return f'[[boards]]\nid = "{name}"\nchip = "{chip}"\nport = "virtual://{path}"\n'

    def client(self, name: str = "client", *, role: str = "flasher") -> Client:
        """A logged-in client with a key and a store of its own."""
        key = self.key(role)
        client = Client(self, self.folder / name)
        client("login", self.url, "--key-stdin", input=key).expect()
        return client

    def until(self, ready: Callable[[], bool], what: str, *programs: Program) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            for program in programs:
                assert program.process.poll() is None, f"{what} ended:\n{program.output()}"
            assert time.monotonic() < deadline, (
                f"{what} was not ready within {READY_S} s\n"
                + "\n".join(program.output()[-3000:] for program in programs)
            )
            time.sleep(0.05)

    def close(self) -> None:
        for program in reversed(self.programs):
            program.stop()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass
class Client:
    """espctl with one store."""

    stand: Stand
    store: Path

    def __call__(self, *words: str, input: str = "", **env: str) -> Done:
        return self.stand.run("espctl", *words, input=input, AEGIS_STORE=str(self.store), **env)

    def start(self, name: str, *words: str, **env: str) -> Program:
        return self.stand.start(name, "espctl", *words, AEGIS_STORE=str(self.store), **env)


def copy_project(name: str, into: Path) -> Path:
    """A copy of a fixture project, so that its project id stays out of the repository."""
    target = into / name
    shutil.copytree(FIXTURES / name, target, ignore=shutil.ignore_patterns(".pio", ".aegis"))
    return target


@contextlib.contextmanager
def a_stand(
    platformio_home: Path, *, listen: str = "127.0.0.1", **settings: str
) -> Iterator[Stand]:
    folder = Path(tempfile.mkdtemp(prefix="aegis-stand-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    stand = Stand(folder, platformio_home, port, settings=settings, listen=listen)
    try:
        stand.control()
        yield stand
    finally:
        stand.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stand(platformio_home: Path) -> Iterator[Stand]:
    with a_stand(platformio_home) as made:
        yield made
