"""
A machine of its own, booted from this one's /usr by systemd-nspawn, with a real systemd in it.

It has no network but loopback and an empty /etc of its own. This clone's programs are installed in
/opt/aegis, from wherever the clone lies: services can't see anybody's home.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from house import ROOT

BOOT_S: Final = 60.0
STOP_S: Final = 20.0
_POLL_S: Final = 0.1
_PARTS: Final = ("protocol", "links", "control", "agent", "client")


@dataclass(frozen=True)
class Container:
    """A booted container. pid: its init, seen from outside."""

    pid: int

    def run(self, *argv: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `argv` in it as root."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc", "--net"]
        return subprocess.run(
            [*inside, "env", "-i", "PATH=/usr/sbin:/usr/bin:/opt/aegis/bin", "HOME=/root", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--lines=60", "--output=cat").stdout


@contextlib.contextmanager
def booted(tmp: Path, files: Mapping[str, Path]) -> Iterator[Container]:
    """
    Boot a container with `files` (path inside -> path here, read-only) and our programs.

    Raises TimeoutError, with what it printed, if its basic.target is not reached in time.
    """
    (tmp / "bin").mkdir()
    for name in ("python", "aegis-control", "aegis-agent"):
        _write_program(tmp / "bin" / name, module=name.replace("-", "_"))
    shown = {
        "/opt/aegis/bin": tmp / "bin",
        "/opt/aegis/python": Path(sys.base_prefix),
        "/opt/aegis/site": Path(sysconfig.get_path("purelib")),
        **{f"/opt/aegis/{part}": ROOT / part for part in _PARTS},
        "/opt/aegis/firmware_fixtures": ROOT / "firmware_fixtures",
        **files,
    }
    argv = ["systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--register=no"]
    argv += ["--keep-unit", "--private-network", "--console=pipe"]
    argv += [f"--bind-ro={here}:{inside}" for inside, here in shown.items()]
    argv += ["--boot", "systemd.unit=basic.target", "systemd.firstboot=no"]
    with (tmp / "console").open("wb") as console:
        nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        yield _ready(nspawn, tmp / "console")
    finally:
        nspawn.terminate()
        try:
            nspawn.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(nspawn.pid).children(recursive=True):
                child.kill()
            nspawn.kill()
            nspawn.wait(STOP_S)


def _write_program(path: Path, *, module: str) -> None:
    """A command as an installed one: this interpreter, our packages, no path of the clone."""
    what = "" if module == "python" else f"-c 'from {module}.cli import main; main()'"
    python = f"/opt/aegis/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    packages = ":".join(f"/opt/aegis/{part}" for part in (*_PARTS, "site"))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {python} {what} "$@"\n')
    path.chmod(0o755)


def _ready(nspawn: subprocess.Popen[bytes], console: Path) -> Container:
    ends = time.monotonic() + BOOT_S
    while time.monotonic() < ends and nspawn.poll() is None:
        for child in psutil.Process(nspawn.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if _is_init(child.pid):
                    container = Container(child.pid)
                    if container.run("systemctl", "is-active", "basic.target").returncode == 0:
                        return container
        time.sleep(_POLL_S)
    raise TimeoutError(f"the container did not boot: {console.read_text(errors='replace')[-3000:]}")


def _is_init(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pids = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
    return len(pids) > 1 and pids[-1] == "1"
