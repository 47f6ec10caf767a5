"""`espctl` as a process: interrupted, left by its agent or its control, and at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aegis_client.exit_codes import ExitCode
from client_stand import Served, project
from fake_agent import APP, Script
from fake_control import BOARD, KEY

TESTS = Path(__file__).parent


@pytest.fixture
def served() -> Iterator[Served]:
    with Served().running() as running:
        yield running


def until(fact: Callable[[], object], within_s: float = 10) -> None:
    ends = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.01)


@contextmanager
def building(
    url: str, tmp: Path, *options: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """`espctl build` as a process of its own."""
    words = ("build", str(project(tmp / "p")), "-t", "esp32p4", *options)
    with espctl(url, tmp, *words, stdout=stdout) as process:
        yield process


@contextmanager
def espctl(
    url: str,
    tmp: Path,
    *words: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "ESPCTL_URL": url, "MCP_AUTH_SECRET": KEY, "AEGIS_STORE": str(tmp / "s")}
    code = "import sys; from aegis_client.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def known_to_the_client(tmp: Path) -> bool:
    """Whether `espctl` has heard that its build runs."""
    return any((tmp / "s" / "tasks").glob("*.json"))


def test_ctrl_c_cancels_the_build_on_the_agent(served: Served, tmp: Path) -> None:
    served.agent.script = Script(hold=True)
    with building(served.control.url, tmp) as process:
        until(lambda: known_to_the_client(tmp))
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(10) == ExitCode.INTERRUPTED
        assert time.monotonic() - began < 5
    assert len(served.agent.canceled) == 1
    assert served.agent.ended_jobs == list(served.control.jobs)
    assert process.stderr is not None


def test_a_second_ctrl_c_leaves_at_once(served: Served, tmp: Path) -> None:
    served.agent.script = Script(hold=True, deaf=True)
    with building(served.control.url, tmp) as process:
        until(lambda: known_to_the_client(tmp))
        process.send_signal(signal.SIGINT)
        until(lambda: "build.cancel" in served.agent.calls)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(10) == ExitCode.INTERRUPTED
        assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGTERM]], ids=["once", "twice"]
)
def test_ctrl_c_in_an_upload_leaves_no_copy_of_the_sources(
    served: Served, tmp: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals]
) -> None:
    served.agent.script = Script(takes_no_source=True)
    (folder := tmp / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with building(served.control.url, tmp) as process:
        until(lambda: "source.push" in served.agent.calls)
        assert list(folder.iterdir())
        process.send_signal(signal.SIGSTOP)  # so that it hears of all at once
        for number in numbers:
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
    assert not list(folder.iterdir())


@pytest.mark.long
def test_an_agent_that_does_not_answer_holds_nobody_up(served: Served, tmp: Path) -> None:
    served.agent.script = Script(hold=True, deaf=True)
    with building(served.control.url, tmp) as process:
        until(lambda: known_to_the_client(tmp))
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(10) == ExitCode.TERMINATED
        assert time.monotonic() - began < 6


def test_ctrl_c_while_a_job_waits_drops_the_job(served: Served, tmp: Path) -> None:
    from aegis_protocol.http_api.jobs import Reason

    served.control.pending = (Reason(code="agent.busy", detail="all slots are taken"),)
    with building(served.control.url, tmp) as process:
        until(lambda: served.control.last_event_ids)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == ExitCode.INTERRUPTED
    assert served.control.canceled == list(served.control.jobs)


@pytest.mark.long
def test_when_agent_and_control_are_killed_together_control_is_the_hop_that_failed(
    tmp: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, str(TESTS / "fake_control.py"), "--hold"], stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            with building(url, tmp, "--json", "--terminal") as process:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stderr.readline() == b"Compiling\r\n"
                server.kill()
                began = time.monotonic()
                _, errors = process.communicate(timeout=30)
                assert time.monotonic() - began < 25
        finally:
            server.kill()
    error = json.loads(errors.splitlines()[-1])["error"]
    assert (process.returncode, error["code"]) == (
        ExitCode.UNREACHABLE,
        "control.unreachable",
    )
    assert error["facts"]["hop"] == "control"
    assert error["remedy"]


def test_control_may_die_in_the_middle_of_a_build(served: Served, tmp: Path) -> None:
    served.agent.script = Script(hold=True)
    with building(served.control.url, tmp, "-q") as process:
        until(lambda: served.agent.builds)
        served.do(served.control.stop)
        served.call(served.agent.script.release.set)
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert (Path(out.decode().strip()) / "firmware.bin").read_bytes() == APP


def test_the_terminals_size_goes_along_and_its_changes_too(served: Served, tmp: Path) -> None:
    served.agent.script = Script(hold=True)
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
        with building(served.control.url, tmp, stdout=slave) as process:
            until(lambda: served.agent.builds)
            first = served.agent.builds[0].terminal
            assert (first.cols, first.rows, first.color) == (132, 40, True)
            until(lambda: b"red" in os.read(master, 4096))
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
            process.send_signal(signal.SIGWINCH)
            until(lambda: served.agent.sizes)
            assert served.agent.sizes == [(100, 50)]
            served.call(served.agent.script.release.set)
            assert process.wait(10) == 0
    finally:
        os.close(master)
        os.close(slave)


def test_keys_go_to_the_board_as_they_are_pressed_and_the_terminal_is_given_back(
    served: Served, tmp: Path
) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    try:
        words = ("monitor", "--board", BOARD.id)
        with espctl(served.control.url, tmp, *words, stdin=slave, stdout=slave) as process:
            until(lambda: b"boot" in os.read(master, 4096))
            until(lambda: not termios.tcgetattr(slave)[3] & termios.ECHO)
            os.write(master, b"help\n")
            until(lambda: bytes(served.agent.typed) == b"help\r\n")
            os.write(master, b"\x1d")
            assert process.wait(10) == 0
        assert termios.tcgetattr(slave)[3] == before[3]
    finally:
        os.close(master)
        os.close(slave)
    assert "monitor.close" in served.agent.calls


def test_ctrl_c_in_a_monitor_leaves_it(served: Served, tmp: Path) -> None:
    words = ("monitor", "--board", BOARD.id)
    with espctl(served.control.url, tmp, *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"boot\r\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == ExitCode.INTERRUPTED
    assert served.agent.ended_jobs == list(served.control.jobs)
