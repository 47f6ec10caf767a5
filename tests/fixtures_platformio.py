"""
A PlatformIO home for tests, and builds of the firmware fixtures with it.

    platformio_home   a finished home, once made kept in build/ for the next run
    copy_fixture      a fixture project to build, outside any sandbox
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from aegis_agent.platformio_home import (
    Layout,
    build_command,
    environment,
    fixtures_dir,
    install,
    prepare_core,
    unreachable_by_others,
)
from aegis_links import event_loop

CHIPS = ("esp32", "esp32p4", "esp32c3", "esp32c6")
DEADLINE_S = 60.0
_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    code: int
    output: str


@dataclass(frozen=True)
class Project:
    """A copy of a project, and a core directory to build it with."""

    path: Path
    home: Path
    core: Path

    def out(self, chip: str) -> Path:
        return self.path / ".pio" / "build" / chip

    def environment(self, **changes: str) -> dict[str, str]:
        own = environment(self.home, core=self.core)
        return {**own, "HOME": str(self.path.parent), "TERM": "xterm-256color", **changes}

    def build(self, *chips: str, **changes: str) -> Run:
        command = build_command(self.home, chips[0], jobs=2)
        for chip in chips[1:]:
            command += ["--environment", chip]
        return self.run(command, **changes)

    def run(self, command: list[str], **changes: str) -> Run:
        """Run `command` in the project with both its streams in one pipe."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE_S,
            check=False,
        )
        return Run(done.returncode, done.stdout.decode(errors="replace"))

    def run_in_terminal(self, command: list[str], **changes: str) -> Run:
        """Run `command` with a terminal of its own."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment(**changes),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            output = bytearray()
            try:
                while chunk := os.read(ours, 65_536):
                    output += chunk
            except OSError:
                pass  # EIO: the last of them has closed the terminal
            os.close(ours)
            code = process.wait(timeout=DEADLINE_S)
        return Run(code, output.decode(errors="replace"))


def copy_fixture(name: str, home: Path, into: Path) -> Project:
    """Copy fixture project `name` under `into`, with a core directory beside it."""
    path = into / name
    shutil.copytree(fixtures_dir() / name, path, ignore=shutil.ignore_patterns(".pio"))
    return Project(path, home, prepare_core(Layout(home).core, into / "core"))


def write_files(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="session")
def platformio_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A finished home, made once for all modules and workers, which may ask for it at the same time.
    It lies in build/ and stays, unless other users can't get there: then in the run's own folder.
    """
    home = _REPOSITORY / "build" / "platformio-home"
    if unreachable_by_others(_REPOSITORY) is not None:
        run = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            run.chmod(0o755)
            run = run.parent
        run.chmod(0o755)
        home = run / "platformio-home"
    # On the loop that the programs run on: it is part of what an installation must live with.
    event_loop.run(install(home, python=Path(sys.executable), on_progress=lambda _words: None))
    return home
