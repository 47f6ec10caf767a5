"""A connection that is lost: what goes on after it, byte by byte, and what ends where none can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aegis_client import connector
from aegis_client import control as control_api
from aegis_client.artifacts import download, list_artifacts
from aegis_client.build import BuildOptions
from aegis_client.build_project import BuildReport, ProjectBuild, build_project
from aegis_client.client import Client
from aegis_client.config import ClientConfig
from aegis_client.failures import AnswerOverdue
from aegis_client.flash import FlashOptions, FlashSource, flash
from aegis_client.hops import Hop, hop_of
from aegis_client.monitor import MonitorOptions, watch_console
from aegis_client.needs import BUILD, FLASH, TYPE, WATCH
from aegis_client.reporter import Silent
from aegis_client.wish import Wish
from aegis_protocol.board import BoardWish
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentBusy, AgentGone
from aegis_protocol.failures.grant import GrantExpired
from aegis_protocol.failures.http import (
    ControlUnreachable,
    JobOver,
    RoleInsufficient,
)
from aegis_protocol.failures.link import (
    HandshakeFailed,
    LinkNotOpened,
    LinkUnreachable,
    NoCandidates,
    RpcTimedOut,
)
from aegis_protocol.states import JobState, TaskState
from client_stand import project
from fake_agent import FakeAgent, Script
from fake_control import BOARD, KEY, FakeControl
from waiting import until

WISH = Wish(needs=BUILD, target="esp32p4")
LINES = [b"line %d\r\n" % number for number in range(20_000)]


class Seen(Silent):
    """Keeps what it is shown; `upon` is called with the bytes of the output so far."""

    def __init__(self, upon: Callable[[int], None] = lambda size: None) -> None:
        self.shown = bytearray()
        self.notes: list[str] = []
        self.connections = 0
        self.downloaded = 0
        self._upon = upon

    def connected(self, agent: str, path: str) -> None:
        self.connections += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        if phase == "download":
            self.downloaded = done
            self._upon(done)

    async def output(self, data: bytes) -> None:
        self.shown += data
        self._upon(len(self.shown))

    async def console(self, data: bytes) -> None:
        await self.output(data)


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    async with FakeControl.running() as running:
        yield running


@pytest.fixture
async def client(control: FakeControl, tmp: Path) -> AsyncIterator[Client]:
    config = ClientConfig(url=control.url, key=KEY, store=tmp / "store")
    async with Client.opened(config) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "BETWEEN_TRIES_S", 0.05)


class Cuts:
    """Cuts the agent's link at given sizes of what the client has seen."""

    def __init__(self, agent: FakeAgent, *at: int) -> None:
        self._agent, self._at = agent, list(at)
        self.made: list[asyncio.Task[None]] = []

    def __call__(self, size: int) -> None:
        if self._at and size >= self._at[0]:
            del self._at[0]
            self.made.append(asyncio.create_task(self._agent.cut()))


def built(client: Client, folder: Path, seen: Seen) -> Coroutine[Any, Any, BuildReport]:
    wanted = ProjectBuild(project(folder), BuildOptions(target="esp32p4"))
    return build_project(client, wanted, WISH, seen)


def append(agent: FakeAgent, data: bytes) -> None:
    next(iter(agent.spools.values())).append(data)


async def test_a_build_whose_link_is_cut_twice_shows_every_byte_once(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    agent = control.agent
    agent.script = Script(output=tuple(LINES), hold=True)
    cuts = Cuts(agent, 20_000, 100_000)
    seen = Seen(cuts)
    building = asyncio.create_task(built(client, tmp / "p", seen))
    await until(lambda: len(cuts.made) == 2 and seen.connections == 3)
    append(agent, b"the last line\r\n")
    agent.script.release.set()
    report = await building
    assert report.error is None
    assert bytes(seen.shown) == b"".join(LINES) + b"the last line\r\n"
    assert len(agent.builds) == 1
    (job,) = control.jobs
    fingerprints = [wanted.peer_fingerprint for wanted in control.wanted]
    assert len(set(fingerprints)) == len(fingerprints) == 3, "each with a certificate of its own"
    assert [wanted.job_id for wanted in control.wanted] == [None, job, job]
    assert agent.ended_jobs == [job]


async def test_a_build_that_ends_while_nobody_is_connected_is_learned_of_afterwards(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    agent = control.agent
    agent.script = Script(hold=True)
    seen = Seen()
    building = asyncio.create_task(built(client, tmp / "p", seen))
    await until(lambda: seen.shown)
    control.relays.clear()
    await agent.cut()
    append(agent, b"unseen\r\n")
    agent.script.release.set()
    (job,) = control.jobs
    await until(lambda: all(t.state is TaskState.SUCCEEDED for t in agent.tasks[job].values()))
    control.relays.set()
    report = await building
    assert report.task.state is TaskState.SUCCEEDED
    assert report.manifest is not None
    assert bytes(seen.shown) == b"".join(agent.script.output) + b"unseen\r\n"
    assert "build.status" in agent.calls


async def test_a_build_whose_start_was_not_answered_is_not_started_twice(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    control.agent.script = Script(lost_answers={"build.start"})
    seen = Seen()
    report = await built(client, tmp / "p", seen)
    assert report.error is None
    assert len(control.agent.builds) == 1
    assert seen.connections == 2
    assert bytes(seen.shown) == b"".join(control.agent.script.output)


@pytest.mark.parametrize("method", ["source.plan", "source.push"])
async def test_an_upload_that_is_cut_is_sent_again(
    control: FakeControl, client: Client, tmp: Path, method: str
) -> None:
    control.agent.script = Script(lost_answers={method})
    seen = Seen()
    report = await built(client, tmp / "p", seen)
    assert report.error is None
    assert seen.connections == 2
    assert set(control.agent.blobs.values()) == {
        path.read_bytes() for path in (tmp / "p").rglob("*") if path.suffix in (".ini", ".c")
    }


async def test_a_download_that_is_cut_goes_on_where_it_was(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    agent = control.agent
    image = bytes(range(256)) * 16_384
    agent.script = Script(app=image)
    cuts = Cuts(agent, 1_000_000, 3_000_000)
    seen = Seen(cuts)
    report = await built(client, tmp / "p", seen)
    assert report.output is not None
    assert (report.output / "firmware.bin").read_bytes() == image
    assert not list(report.output.glob("*.part"))
    offsets = [offset for name, offset in agent.fetched if name == "firmware.bin"]
    assert len(offsets) == 3
    assert 0 == offsets[0] < offsets[1] < offsets[2]
    assert report.manifest is not None, "verified with the agent's key"


async def test_a_console_goes_on_and_is_typed_at_over_the_next_connection(
    control: FakeControl, client: Client
) -> None:
    agent = control.agent
    agent.script = Script(console=tuple(LINES[:5000]))
    cuts = Cuts(agent, 10_000)
    seen = Seen(cuts)
    wish = Wish(needs=WATCH | TYPE, boards=(BoardWish(id=BOARD.id),))
    typed: asyncio.Queue[bytes] = asyncio.Queue()

    async def keys() -> AsyncIterator[bytes]:
        while True:
            yield await typed.get()

    async with client.session(wish, seen) as session:
        watching = asyncio.create_task(
            watch_console(session, BOARD.id, MonitorOptions(expect="^ready$"), seen, keys=keys())
        )
        await until(lambda: cuts.made)
        control.relays.clear()
        await until(lambda: not session.connected)
        typed.put_nowait(b"status\r\n")
        control.relays.set()
        await until(lambda: bytes(agent.typed) == b"status\r\n")
        append(agent, b"ready\r\n")
        report = await watching
    assert seen.connections == 2
    assert bytes(seen.shown) == b"".join(LINES[:5000]) + b"ready\r\n"
    assert report.seen_bytes == len(seen.shown)
    assert agent.calls.count("monitor.open") == 1


async def test_a_flash_whose_start_was_not_answered_is_not_done_twice(
    control: FakeControl, client: Client
) -> None:
    control.agent.script = Script(lost_answers={"flash.start"})
    wish = Wish(needs=FLASH, boards=(BoardWish(id=BOARD.id),))
    async with client.session(wish, Seen()) as session:
        source = FlashSource(task_id="01890a5d-ac96-774b-bcce-b302099a8057")
        report = await flash(session, source, "esp32p4", FlashOptions(), Seen())
    assert report.result.chip == "ESP32-P4"
    assert len(control.agent.flashes) == 1


async def test_an_agent_that_closes_again_and_again_is_gone(
    control: FakeControl, client: Client
) -> None:
    agent, seen = control.agent, Seen()
    with pytest.raises(AgentGone, match="one connection after the other"):
        async with client.session(WISH, seen) as session:
            while session.failure is None:
                await until(lambda: session.connected or session.failure)
                agent.sessions[-1].closing.set()
                await until(lambda: not session.connected)
            await session.task_ended("none")
    assert seen.connections == len(agent.sessions) == 4
    assert agent.ended_jobs == control.canceled == [], "what runs there goes on"


async def test_an_agent_that_comes_back_without_the_build_is_gone(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    agent = control.agent
    agent.script = Script(hold=True)
    seen = Seen()
    building = asyncio.create_task(built(client, tmp / "p", seen))
    await until(lambda: seen.shown)
    await agent.changed(*_running(agent))
    agent.tasks[next(iter(control.jobs))].clear()
    await agent.cut()
    with pytest.raises(AgentGone, match="without the build"):
        await building


async def test_an_agent_that_left_control_too_is_not_waited_for_for_long(
    control: FakeControl, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "GONE_S", 0.5)
    with pytest.raises(AgentGone, match="lost its link to control") as caught:
        async with client.session(WISH, Seen()) as session:
            await gone_from_control(control, session.job_id)
            await control.agent.cut()
            await session.task_ended("none")
    assert caught.value.facts["hop"] == "agent"
    assert control.offers == 1


async def test_an_agent_that_fell_silent_before_control_lost_it_is_waited_for_longer(
    control: FakeControl, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "GONE_S", 0.0)
    gone = AgentGone("the agent lost its link to control").body().model_dump(mode="json")
    seen = Seen()
    async with client.session(WISH, seen) as session:
        control.relays.clear()
        await control.agent.cut()
        await until(lambda: control.offers == 2)
        await control.tell(session.job_id, "closed", error=gone)
        await until(lambda: any("trying again" in note for note in seen.notes))
        control.relays.set()
        await control.tell(session.job_id, "state", state="running")
        await until(lambda: session.connected)


async def test_an_agent_whose_network_changed_is_met_again_when_it_is_back(
    control: FakeControl, client: Client
) -> None:
    seen = Seen()
    async with client.session(WISH, seen) as session:
        await gone_from_control(control, session.job_id)
        await control.agent.cut()
        await until(lambda: not session.connected)
        assert control.offers == 1
        await control.tell(session.job_id, "state", state="running")
        await until(lambda: session.connected)
    assert seen.connections == 2
    assert control.agent.ended_jobs == [session.job_id]


async def test_a_job_that_ended_meanwhile_says_why(control: FakeControl, client: Client) -> None:
    with pytest.raises(AgentGone, match="without the job"):
        async with client.session(WISH, Seen()) as session:
            await control.end(
                session.job_id, JobState.FAILED, AgentGone("it came back without the job")
            )
            await until(lambda: "link.measure" in control.agent.calls)
            await control.agent.cut()
            await session.task_ended("none")


async def test_a_job_that_was_placed_again_is_dropped_as_nothing_of_it_runs_any_more(
    control: FakeControl, client: Client
) -> None:
    with pytest.raises(AgentGone, match="taken from it") as caught:
        async with client.session(WISH, Seen()) as session:
            control.jobs[session.job_id].state = JobState.PENDING
            await control.agent.cut()
            await session.task_ended("none")
    assert caught.value.facts["placed_again"] is True
    assert control.canceled == [session.job_id]


async def test_without_control_there_is_no_way_back_and_the_error_says_so(
    control: FakeControl, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_api, "_BACKOFF_S", (0.01, 0.02))
    with pytest.raises(ControlUnreachable, match="was lost, and making another") as caught:
        async with client.session(WISH, Seen()) as session:
            await control.stop()
            await control.agent.cut()
            await session.task_ended("none")
    assert caught.value.facts["hop"] == "control"
    assert caught.value.remedy


async def test_an_answer_that_never_comes_is_signallings_failure(
    control: FakeControl, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnswerOverdue) as caught:
        async with client.session(WISH, Seen()) as session:
            monkeypatch.setattr(connector, "ATTEMPT_S", 0.3)
            control.relays.clear()
            await control.agent.cut()
            await session.task_ended("none")
    assert caught.value.facts["hop"] == "signalling"
    assert control.offers == 4, "one connection, then three tries"


async def test_whoever_leaves_while_there_is_no_connection_drops_the_job(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    control.agent.script = Script(hold=True)
    seen = Seen()
    building = asyncio.create_task(built(client, tmp / "p", seen))
    await until(lambda: seen.shown)
    control.relays.clear()
    await control.agent.cut()
    await until(lambda: any("connecting again" in note for note in seen.notes))
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert control.canceled == list(control.jobs)


async def test_artifacts_are_listed_over_a_connection_that_is_lost_meanwhile(
    control: FakeControl, client: Client, tmp: Path
) -> None:
    report = await built(client, tmp / "p", Seen())
    control.agent.script = Script(lost_answers={"artifacts.list"})
    async with client.session(WISH, Seen()) as session:
        found = await list_artifacts(session, report.task.task_id)
        files = await download(session, report.task.task_id, found, tmp / "out", Seen())
    assert {file.name for file in files} == set(control.agent.files[report.task.task_id])


@pytest.mark.parametrize(
    ("error", "reached", "hop"),
    [
        (ControlUnreachable("x"), Hop.SIGNALLING, Hop.CONTROL),
        (RoleInsufficient("x"), Hop.CONTROL, Hop.GRANT),
        (JobOver("x"), Hop.CONTROL, Hop.GRANT),
        (GrantExpired("x"), Hop.SIGNALLING, Hop.GRANT),
        (AgentBusy("x"), Hop.SIGNALLING, Hop.AGENT),
        (NoCandidates("x"), Hop.CONTROL, Hop.ICE),
        (LinkUnreachable("x"), Hop.ICE, Hop.ICE),
        (LinkNotOpened("x", progress={"ice": "checking"}), Hop.ICE, Hop.ICE),
        (LinkNotOpened("x", progress={"ice": "completed"}), Hop.ICE, Hop.DTLS),
        (HandshakeFailed("x"), Hop.ICE, Hop.DTLS),
        (RpcTimedOut("x"), Hop.AGENT, Hop.AGENT),
    ],
)
def test_an_error_is_that_of_the_hop_that_failed(error: AegisError, reached: Hop, hop: Hop) -> None:
    assert hop_of(error, reached) is hop


def _running(agent: FakeAgent) -> tuple[str, Any]:
    (job,) = agent.tasks
    return job, next(iter(agent.tasks[job].values()))


async def gone_from_control(control: FakeControl, job_id: str) -> None:
    """Control says that the agent lost its link, and the client has heard it."""
    error = AgentGone("the agent lost its link to control").body().model_dump(mode="json")
    await control.tell(job_id, "closed", error=error)
    await until(lambda: "link.measure" in control.agent.calls)
