"""The daemon: signals, limits of its own, what it finds at its start, and what systemd is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aegis_agent import rounds
from aegis_agent.system_manager import SystemManager
from aegis_protocol.control_link import Drain, Hello, JobMoved, Resume, Status
from aegis_protocol.failures.http import LinkRefused
from aegis_protocol.ids import public_id
from aegis_protocol.signing import unb64
from aegis_protocol.states import JobState
from agent_control import TOKEN, ControlPlane
from agent_stand import Peer, RunningAgent, an_agent, rejection, unlinked_agent
from waiting import until

PROGRAM = Path(sys.executable).parent / "aegis-agent"


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_ROUND_S", 0.05)


class Process:
    """`aegis-agent run`, and a peer's way to it."""

    def __init__(self, control: ControlPlane, process: asyncio.subprocess.Process) -> None:
        self.control, self.process = control, process

    async def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it logged."""
        async with asyncio.timeout(20):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        hello = self.control.hellos[-1]
        async with _remote(self.control, hello).peer() as peer:
            await peer.hello()
            yield peer


class _Identity:
    def __init__(self, hello: Hello) -> None:
        self.public_key = unb64(hello.public_key)
        self.agent_id = public_id(self.public_key)


def _remote(control: ControlPlane, hello: Hello) -> RunningAgent:
    """An agent that is another process: only its identity is known here."""
    unknown: Any = None
    identity: Any = _Identity(hello)
    return RunningAgent(control, unknown, identity, unknown, unknown)


@asynccontextmanager
async def a_process(control: ControlPlane, state: Path, **env: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "run",
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(state),
            "AEGIS_CONFIG_DIR": str(state / "etc"),
            "AEGIS_STATE_DIR": str(state / "agent"),
            "AEGIS_DISCOVER_BOARDS": "0",
            "AEGIS_JOB_LINGER_SECS": "0.2",
            "CONTROL_BASE_URL": control.url,
            "AGENT_AUTH_SECRET": TOKEN,
            **env,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(control, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_an_idle_agent_goes_at_the_first_signal(control: ControlPlane, tmp: Path) -> None:
    async with a_process(control, tmp) as agent:
        await control.linked()
        agent.signal()
        code, logged = await agent.ended()
    assert code == 0, logged
    assert "Traceback" not in logged
    events = [json.loads(line)["event"] for line in logged.splitlines()]
    assert "agent.draining" in events
    assert events[-1] == "agent.stopped"
    assert TOKEN not in logged


async def test_the_first_signal_lets_a_job_finish_and_its_end_is_told(
    control: ControlPlane, tmp: Path
) -> None:
    async with a_process(control, tmp) as agent:
        await control.linked()
        async with agent.peer() as peer:
            agent.signal(signal.SIGINT)
            status = await control.heard(Status)
            assert (status.paused, status.draining) == ("draining", True)
            await peer.hello()
            await peer.ask("job.end")
        code, _ = await agent.ended()
        assert code == 0
        moved = await control.heard(JobMoved)
        assert (moved.job_id, moved.state) == (peer.job_id, JobState.SUCCEEDED)


async def test_a_second_signal_cancels_and_says_so_to_all(control: ControlPlane, tmp: Path) -> None:
    async with a_process(control, tmp) as agent:
        await control.linked()
        async with agent.peer() as peer:
            agent.signal()
            await control.heard(Status)
            agent.signal()
            why = await peer.closing()
        assert why is not None
        assert why.code == "agent.gone"
        code, _ = await agent.ended()
        assert code == 0
        moved = await control.heard(JobMoved)
        assert (moved.job_id, moved.state) == (peer.job_id, JobState.CANCELED)


async def test_a_third_signal_exits_at_once(control: ControlPlane, tmp: Path) -> None:
    async with a_process(control, tmp) as agent:
        await control.linked()
        async with agent.peer():
            agent.signal()
            await control.heard(Status)
            for _ in range(2):  # two at once may be heard as one
                agent.signal()
                agent.signal(signal.SIGINT)
            code, _ = await agent.ended()
    assert code in (0, 1)


async def test_a_second_agent_on_one_state_directory_is_refused_and_disturbs_nothing(
    control: ControlPlane, tmp: Path
) -> None:
    async with a_process(control, tmp) as first:
        await control.linked()
        (tmp / "agent/incoming/upload.part").touch()
        (tmp / "agent/jobs/job").mkdir()
        async with a_process(control, tmp) as second:
            code, said = await second.ended()
        assert code == 1
        assert "agent.state_dir_busy" in said
        assert "Traceback" not in said
        assert (tmp / "agent/incoming/upload.part").exists()
        assert (tmp / "agent/jobs/job").exists()
        first.signal()
        assert (await first.ended())[0] == 0


async def test_a_refusal_ends_the_agent_with_a_code_that_systemd_does_not_restart(
    control: ControlPlane, tmp: Path
) -> None:
    refusal, code = LinkRefused("not enrolled here"), 4
    control.refusal = refusal
    async with a_process(control, tmp) as agent:
        ended, said = await agent.ended()
    assert ended == code
    assert refusal.code in said
    assert refusal.remedy in said
    assert "Traceback" not in said
    unit = (Path(__file__).parents[1] / "systemd/aegis-agent.service").read_text()
    assert f"RestartPreventExitStatus=2 {code}" in unit


async def test_a_wrong_secret_ends_the_agent_without_showing_it(
    control: ControlPlane, tmp: Path
) -> None:
    async with a_process(control, tmp, AGENT_AUTH_SECRET="a-wrong-secret") as agent:
        code, said = await agent.ended()
    assert code == 4
    assert "enroll.refused" in said
    assert "a-wrong-secret" not in said


# In this process.


async def test_what_was_left_by_a_crash_is_gone_at_the_start(
    control: ControlPlane, tmp: Path
) -> None:
    state = tmp / "agent"
    for name in ("incoming/x.part", "jobs/old/spool/1.segment", "results/drafts/d/files/f"):
        (state / name).parent.mkdir(parents=True)
        (state / name).touch()
    async with an_agent(control, tmp):
        for name in ("incoming", "jobs", "results/drafts"):
            assert list((state / name).iterdir()) == []


async def test_a_ledger_that_is_damaged_is_put_aside(control: ControlPlane, tmp: Path) -> None:
    (tmp / "agent").mkdir()
    (tmp / "agent/ledger.sqlite").write_bytes(b"this is no database" * 100)
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
    assert (tmp / "agent/ledger.sqlite.damaged").exists()
    assert (tmp / "agent/ledger.sqlite").stat().st_mode & 0o777 == 0o600


async def test_a_ledger_that_can_not_be_written_refuses_offers_and_no_more(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent:
        with sqlite3.connect(tmp / "agent/ledger.sqlite", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            agent.daemon._ledger._db.execute("PRAGMA busy_timeout=50")
            refused = await rejection(agent)
            assert refused.error.code == "agent.disk_full"
            other.execute("ROLLBACK")
        other.close()
        async with agent.peer() as peer:
            await peer.hello()


async def test_systemd_need_not_wait_for_a_control_that_is_away(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_agent.daemon._ENROLL_AGAIN_S", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp / "notify"))
    await control.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp / "notify"))
        heard.settimeout(10)
        async with unlinked_agent(control, tmp) as agent:
            assert await asyncio.to_thread(heard.recv, 4096) == b"READY=1"
            assert (await asyncio.to_thread(heard.recv, 4096)).startswith(b"STATUS=not enrolled")
            notifier = agent.daemon._manager._notifier
        assert notifier is not None
        notifier.socket.close()


async def test_a_full_disk_pauses_the_agent_until_there_is_room(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = 96
    monkeypatch.setattr(rounds, "used_percent", lambda _: used)
    async with an_agent(control, tmp) as agent:
        await until(lambda: agent.daemon.intake.reason)
        refused = await rejection(agent)
        assert refused.error.code == "agent.busy"
        assert "disk 96 %" in refused.error.message
        control.cut()
        assert (await control.linked(again=True)).paused == "disk 96 %"
        used = 94  # not yet: or each file would open and close it
        await control.pinged()
        assert agent.daemon.intake.reason
        used = 92
        await until(lambda: agent.daemon.intake.reason is None)
        await control.heard(Status, lambda s: s.paused is None)


async def test_without_control_connections_end_and_builds_do_not(
    control: ControlPlane, tmp: Path
) -> None:
    async with (
        an_agent(control, tmp, max_offline_secs=0.4, linger_secs=5) as agent,
        agent.peer() as peer,
    ):
        await peer.hello()
        await control.stop()
        why = await peer.closing()
        assert why is not None
        assert why.code == "agent.gone"
        assert len(agent.daemon.jobs.jobs) == 1
        await control.start()
        await control.linked(again=True)
        async with agent.peer(peer.job_id) as again:
            await again.hello()


async def test_a_drained_agent_lets_its_job_finish_and_waits_for_orders(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp, linger_secs=0.1) as agent:
        async with agent.peer() as peer:
            control.send(Drain())
            assert (await control.heard(Status)).draining
            assert (await rejection(agent)).error.code == "agent.busy"
            await peer.hello()
        assert (await agent.moved(peer.job_id)).state is JobState.SUCCEEDED
        await until(agent.daemon.jobs.idle)
        control.send(Resume())
        await control.heard(Status, lambda s: not s.draining)
        async with agent.peer() as again:
            await again.hello()


async def test_a_drain_may_be_taken_back_while_something_runs(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp, linger_secs=0.1) as agent:
        async with agent.peer():
            control.send(Drain())
            await control.heard(Status, lambda s: s.draining)
            control.send(Resume())
            await control.heard(Status, lambda s: not s.draining)
        await until(agent.daemon.jobs.idle)
        await control.pinged()
        assert not agent.task.done()


async def test_systemd_gets_one_line_whatever_control_said(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        manager = SystemManager()
        manager.status("no link to control: oh\nMAINPID=1\nSTOPPING=1")
        manager.ready()
        manager.alive()
        said = [heard.recv(4096) for _ in range(3)]
        manager._notifier.socket.close()  # type: ignore[union-attr]
    assert said == [
        b"STATUS=no link to control: oh MAINPID=1 STOPPING=1",
        b"READY=1",
        b"WATCHDOG=1",
    ]
