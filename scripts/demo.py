#!/usr/bin/env python3
"""
The main job on this machine, as a user would do it: control, an agent, two virtual boards, espctl.

    scripts/demo.py           run it, print a table of steps, leave nothing running
    scripts/demo.py --keep    leave everything up, and say what to try next
    scripts/demo.py --stop    stop what --keep left up

It reads and writes `.demo/` in this clone alone; only the boards' sockets may lie in a short
temporary folder, since a socket's path has at most 107 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
DEMO: Final = ROOT / ".demo"
BIN: Final = Path(sys.executable).parent
FIXTURES: Final = Path("firmware_fixtures")
BOARDS: Final = {"demo-p4": "esp32p4", "demo-esp32": "esp32"}
READY_S: Final = 30.0
STEP_S: Final = 120.0
STOP_S: Final = 15.0
LONGEST_SOCKET: Final = 90


class DemoError(Exception):
    """A step that did not do what it should; the text says which and why."""


@dataclass
class Demo:
    """What runs, what was done, and how long it took."""

    env: dict[str, str]
    run_dir: Path
    programs: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)
    steps: list[tuple[str, float, str]] = field(default_factory=list)

    def start(self, name: str, *command: str) -> None:
        """Start a program in a session of its own, its output in `.demo/NAME.log`."""
        with (DEMO / f"{name}.log").open("wb") as output:
            program = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=ROOT,
                start_new_session=True,
            )
        self.programs.append((name, program))
        _remember(self)

    def step(self, name: str, *command: str, expect: int = 0, show: bool = True) -> str:
        """Run a command as a user would, show what it prints, and note its time."""
        words = shlex.join(command)
        print(f"\n\033[1m$ {words}\033[0m" if sys.stdout.isatty() else f"\n$ {words}", flush=True)
        started = time.monotonic()
        program = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
            cwd=ROOT,
        )
        assert program.stdout is not None
        try:
            printed = _passed_on(program.stdout, show=show)
            code = program.wait(timeout=STEP_S)
        except BaseException:
            program.kill()
            program.wait()
            raise
        took = time.monotonic() - started
        self.steps.append((name, took, "ok" if code == expect else f"exit code {code}"))
        if code != expect:
            raise DemoError(f"{name}: exit code {code}, and not {expect}")
        return printed

    def ask(self, *command: str) -> Any:
        """Run a command quietly and return the JSON that it prints."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.env,
            cwd=ROOT,
            timeout=STEP_S,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-2000:]}")
        return json.loads(done.stdout)

    def wait_for(self, what: str, ready: Any) -> None:
        """Wait until `ready()` is true; a program that ended meanwhile is named with its log."""
        deadline = time.monotonic() + READY_S
        while not ready():
            for name, program in self.programs:
                if program.poll() is not None:
                    raise DemoError(f"{name} ended early:\n{_tail(name)}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{_tail(name)}" for name, _ in self.programs)
                raise DemoError(f"{what} was not ready within {READY_S:.0f} s\n{logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything that was started, in reverse; what does not go is killed."""
        _stop([program.pid for _, program in reversed(self.programs)])
        for _, program in self.programs:
            program.wait()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        (DEMO / "running.json").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--keep", action="store_true", help="leave everything up")
    parser.add_argument("--stop", action="store_true", help="stop what --keep left up")
    wish = parser.parse_args()
    stop_kept()
    if wish.stop:
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    return run(keep=wish.keep)


def run(*, keep: bool) -> int:
    """Do it all; 0 when every step did what it should."""
    if DEMO.exists():
        for entry in DEMO.iterdir():
            if entry.name != "toolchains":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    DEMO.mkdir(exist_ok=True)
    demo = _prepared()
    began = time.monotonic()
    try:
        set_up_s = _set_up(demo)
        began = time.monotonic()
        _path(demo)
    except (DemoError, subprocess.TimeoutExpired, KeyboardInterrupt) as exc:
        demo.stop()
        print(f"\nThe demo failed: {exc or 'interrupted'}", file=sys.stderr)
        print(f"The logs are in {DEMO.relative_to(ROOT)}/.", file=sys.stderr)
        return 130 if isinstance(exc, KeyboardInterrupt) else 1
    except BaseException:
        demo.stop()
        raise
    path_s = time.monotonic() - began
    if keep:
        _say_what_to_try(demo)
    else:
        demo.stop()
    _table(demo, set_up_s, path_s)
    return 0


def _prepared() -> Demo:
    """The environment that every program of the demo gets: nothing of the user's own settings."""
    run_dir = DEMO / "run"
    if len(str(run_dir)) > LONGEST_SOCKET - 20:
        run_dir = Path(tempfile.mkdtemp(prefix="aegis-demo-"))
    run_dir.mkdir(exist_ok=True, mode=0o700)
    base_url = f"http://127.0.0.1:{_free_port()}"
    env = {
        "PATH": f"{BIN}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(DEMO / "home"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "PYTHONUNBUFFERED": "1",
        "CONTROL_BASE_URL": base_url,
        "CONTROL_PUBLIC_BASE_URL": base_url,
        "AEGIS_STORE": str(DEMO / "client"),
        "AEGIS_PLATFORMIO_HOME": str(DEMO / "toolchains" / "platformio"),
        "AEGIS_AGENT_NAME": "demo-agent",
        "AEGIS_SLOTS": "2",
        "AEGIS_DISCOVER_BOARDS": "0",
        "COLUMNS": "110",
    }
    if sys.stdout.isatty():
        env["FORCE_COLOR"] = "1"  # the programs write to a pipe, and it ends on a terminal
    for name in ("TERM", "VIRTUAL_ENV", "SSL_CERT_FILE", "UV_CACHE_DIR", "PIP_CACHE_DIR"):
        if name in os.environ:
            env[name] = os.environ[name]
    # What the user's package client is configured with: the demo installs PlatformIO by it.
    env |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_"))}
    env |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    (DEMO / "home").mkdir(exist_ok=True)
    return Demo(env=env, run_dir=run_dir)


def _set_up(demo: Demo) -> float:
    """Install the toolchain, start control, the boards and the agent; returns the seconds."""
    started = time.monotonic()
    print("Setting up: PlatformIO, control, an agent, two virtual boards …", flush=True)
    demo.env["AEGIS_STATE_DIR"] = str(DEMO / "agent")
    demo.step("install PlatformIO", "aegis-agent", "toolchains", "install")
    boards = []
    for name, chip in BOARDS.items():
        path = demo.run_dir / f"{name}.sock"
        demo.start(name, "aegis-agent", "virtual-board", "--chip", chip, "--listen", str(path))
        boards.append(f'[[boards]]\nid = "{name}"\nchip = "{chip}"\nport = "virtual://{path}"\n')
    (DEMO / "agent").mkdir(exist_ok=True)
    (DEMO / "agent" / "agent.toml").write_text("\n".join(boards))
    listen = demo.env["CONTROL_BASE_URL"].removeprefix("http://")
    demo.env["AEGIS_STATE_DIR"] = str(DEMO / "control")
    demo.start("control", "aegis-control", "serve", "--listen", listen)
    key_file = DEMO / "control" / "operator.key"
    demo.wait_for("control", key_file.exists)
    demo.wait_for("control", lambda: _answers(listen))
    token = demo.ask("aegis-control", "enroll-token", "create", "--json")["token"]
    demo.wait_for("the boards", lambda: all((demo.run_dir / f"{b}.sock").exists() for b in BOARDS))
    demo.env["AEGIS_STATE_DIR"] = str(DEMO / "agent")
    demo.env["AEGIS_ENROLL_TOKEN"] = token
    demo.ask("aegis-agent", "enroll", "--json")
    del demo.env["AEGIS_ENROLL_TOKEN"]
    demo.start("agent", "aegis-agent", "run")
    demo.env["AEGIS_STATE_DIR"] = str(DEMO / "control")
    demo.wait_for("the agent", lambda: _agent_is_ready(demo))
    demo.step(
        "log in", "espctl", "login", demo.env["CONTROL_BASE_URL"], "--key-file", str(key_file)
    )
    return time.monotonic() - started


def _path(demo: Demo) -> None:
    """What a user does: run, build and flash, and a build that fails."""
    demo.step("list the agents", "aegis-control", "list-agents")
    hello = str(FIXTURES / "hello")
    printed = demo.step(
        "build, flash and run on the esp32p4",
        *("espctl", "run", hello, "--target", "esp32p4"),
        *("--expect", "hello from esp32p4", "--timeout", "30"),
    )
    if "hello from esp32p4" not in printed:
        raise DemoError("the banner of the firmware was not seen on the console")
    demo.step(
        "build for the esp32",
        *("espctl", "build", hello, "--target", "esp32", "--output", str(DEMO / "esp32")),
    )
    demo.step("flash the esp32", "espctl", "flash", str(DEMO / "esp32"), "--board", "demo-esp32")
    broken = demo.step(
        "a build with two errors",
        *("espctl", "build", str(FIXTURES / "broken"), "--target", "esp32p4"),
        expect=3,
    )
    for file in ("src/calibration.c", "src/temperature.c"):
        if file not in broken:
            raise DemoError(f"the error in {file} was not shown")


def _agent_is_ready(demo: Demo) -> bool:
    agents = demo.ask("aegis-control", "list-agents", "--json")["agents"]
    return any(
        agent["state"] == "online" and len(agent["boards"]) == len(BOARDS) for agent in agents
    )


def _passed_on(output: IO[bytes], *, show: bool) -> str:
    """Copy a program's output to ours as it comes, and return it."""
    printed = bytearray()
    while chunk := os.read(output.fileno(), 65_536):
        printed += chunk
        if show:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return printed.decode(errors="replace")


def _table(demo: Demo, set_up_s: float, path_s: float) -> None:
    width = max(len(name) for name, _, _ in demo.steps)
    print(f"\n{'step':<{width}}  seconds  outcome")
    for name, took, outcome in demo.steps:
        print(f"{name:<{width}}  {took:7.1f}  {outcome}")
    print(f"\nset-up {set_up_s:.1f} s, the path itself {path_s:.1f} s")


def _say_what_to_try(demo: Demo) -> None:
    store, state = demo.env["AEGIS_STORE"], DEMO / "control"
    print(f"""
Everything is still up. Try, in this shell:

  export PATH="{BIN}:$PATH" AEGIS_STORE="{store}"
  espctl agents
  espctl boards
  espctl monitor --board demo-p4 --reset --timeout 5
  espctl run firmware_fixtures/crash --target esp32p4 --expect 'Guru Meditation' --timeout 30
  espctl jobs
  AEGIS_STATE_DIR="{state}" aegis-control list-agents

Stop it with: scripts/demo.py --stop   (or make clean, which removes .demo/ too)""")


def stop_kept() -> None:
    """Stop what an earlier `--keep` left up. Only processes that we started are touched."""
    record = DEMO / "running.json"
    try:
        kept = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return
    pids = []
    for pid, created in kept["programs"]:
        try:
            # A pid may belong to somebody else by now: the time of its start tells.
            if abs(psutil.Process(pid).create_time() - created) < 1:
                pids.append(pid)
        except psutil.NoSuchProcess:
            continue
    _stop(list(reversed(pids)))
    shutil.rmtree(kept["run_dir"], ignore_errors=True)
    record.unlink()
    print("The demo that was kept up is stopped.")


def _remember(demo: Demo) -> None:
    programs = [
        (program.pid, psutil.Process(program.pid).create_time())
        for _, program in demo.programs
        if program.poll() is None
    ]
    (DEMO / "running.json").write_text(
        json.dumps({"programs": programs, "run_dir": str(demo.run_dir)})
    )


def _stop(pids: list[int]) -> None:
    """SIGTERM twice (drain, then cancel), with some patience; then SIGKILL to the groups."""
    alive = []
    for pid in pids:
        try:
            alive.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGTERM, STOP_S)):
        for process in alive:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=patience_s)
    for process in alive:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _tail(name: str) -> str:
    try:
        return (DEMO / f"{name}.log").read_text(errors="replace")[-2000:]
    except FileNotFoundError:
        return ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
