"""The store fails under real programs: it is said, nothing acknowledged is lost, and it mends."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest
from aegis_client.accounts import Account
from aegis_client.config import ClientConfig
from aegis_client.control import ControlClient
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.grants import GrantReply, GrantRequest
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT, sdp
from control_runs import call
from databases import a_server
from replica_stand import MCP, ControlProgram, ReplicaStand
from waiting import until
from working_agent import WorkingAgent

WORK_S = 600.0
DISK_BYTES = 16 << 20


@dataclass
class Asking:
    """A client that asks all the time. told: the jobs that control acknowledged."""

    control: ControlClient
    told: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    async def go_on(self) -> None:
        request = GrantRequest(
            peer_fingerprint=FINGERPRINT, required_channels=("espctl",), labels={"site": "nowhere"}
        )
        while True:
            try:
                async with asyncio.timeout(20):
                    self.told.append((await self.control.request_grant(request)).job_id)
            except AegisError as exc:
                self.refusals.append(exc.code)
            await asyncio.sleep(0.3)


@dataclass
class Rig:
    """A control with an agent that works on one job, and a client that asks all the time."""

    stand: ReplicaStand
    agent: WorkingAgent
    control: ControlClient
    asking: Asking
    job_id: str

    @property
    def program(self) -> ControlProgram:
        return self.stand.replicas[0]

    async def until_health(self, status: int, *, within_s: float = 30) -> None:
        """Wait until every replica's `/health` has this status."""
        async with asyncio.timeout(within_s):
            for replica in self.stand.replicas:
                while (said := await replica.health()) is None or said[0] != status:
                    await asyncio.sleep(0.1)
                assert said[1]["store"] == ("ok" if status == 200 else "error")

    async def all_is_well_again(self) -> None:
        """What was acknowledged is there, the build went on, and new jobs are taken."""
        await self.until_health(200)
        before = len(self.asking.told)
        await until(lambda: len(self.asking.told) > before, within_s=30)
        for job_id in self.asking.told:
            assert (await self.control.job(job_id)).id == job_id
        assert (await self.control.job(self.job_id)).state is JobState.RUNNING
        self.agent.finish()
        async with asyncio.timeout(60):
            while (await self.control.job(self.job_id)).state is not JobState.SUCCEEDED:
                await asyncio.sleep(0.2)
        assert [(run.job_id, run.attempt) for run in self.agent.runs] == [(self.job_id, 1)]
        for replica in self.stand.replicas:
            assert replica.process is not None and replica.process.returncode is None


@asynccontextmanager
async def rig(
    folder: Path,
    url: str | None = None,
    *,
    count: int = 1,
    within: Callable[[Path], tuple[str, ...]] = lambda state: (),
) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        stand = await stack.enter_async_context(
            ReplicaStand.open(folder, url, count=count, within=within)
        )
        agent = WorkingAgent(session, stand.url)
        await agent.enroll()
        await stack.enter_async_context(agent.living(work_s=WORK_S))
        await until(lambda: agent.links, within_s=30)
        account = Account(stand.url, MCP, "the test", "the test")
        control = await stack.enter_async_context(ControlClient.connected(ClientConfig(), account))
        request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
        async with asyncio.timeout(30):
            while not isinstance(reply := await control.request_grant(request), GrantReply):
                await control.cancel_job(reply.job_id)
        await control.offer(reply.job_id, reply.grant, sdp())
        await until(lambda: agent.runs, within_s=30)
        asking = Asking(control)
        task = asyncio.create_task(asking.go_on())
        stack.callback(task.cancel)
        await until(lambda: asking.told, within_s=30)
        yield Rig(stand, agent, control, asking, reply.job_id)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_postgresql_that_is_gone_for_a_while_is_said_and_all_goes_on_afterwards(
    tmp: Path,
) -> None:
    with a_server() as server:
        async with rig(tmp, server.url(), count=2) as r:
            links = r.agent.links
            await asyncio.to_thread(server.stop)
            await r.until_health(503)
            refused = len(r.asking.refusals)
            await until(lambda: len(r.asking.refusals) > refused, within_s=60)
            assert set(r.asking.refusals) <= {"control.unavailable"}
            await asyncio.sleep(11)  # longer than a replica that says nothing is taken for alive
            await asyncio.to_thread(server.start)
            await r.all_is_well_again()
            assert "replica.died" not in "".join(one.said() for one in r.stand.replicas)
            assert r.agent.links <= links + 3


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_sqlite_that_another_process_locks_is_said_and_all_goes_on_afterwards(
    tmp: Path,
) -> None:
    async with rig(tmp) as r:
        path = r.program.folder / "state/control.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            await r.until_health(503)
            status = ("status", "--json", "--state-dir", str(path.parent))
            assert (await call(tmp, *status)).data["store_ok"] is False
            other.execute("ROLLBACK")
        await r.all_is_well_again()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.requires("bwrap")
async def test_a_full_disk_is_said_and_all_goes_on_when_there_is_room(tmp: Path) -> None:
    def small_disk(state: Path) -> tuple[str, ...]:
        size = ("--size", str(DISK_BYTES), "--tmpfs", str(state))
        return ("bwrap", "--die-with-parent", "--dev-bind", "/", "/", *size)

    async with rig(tmp, within=small_disk) as r:
        assert r.program.process is not None
        control = psutil.Process(r.program.process.pid)
        pids = [one.pid for one in (control, *control.children(recursive=True))]
        inside = [Path(f"/proc/{pid}/root{r.program.folder}/state") for pid in pids]
        seen = next(state for state in inside if (state / "control.db").exists())
        filler = seen / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        await r.until_health(503)
        assert "full" in r.program.said()
        filler.unlink()
        await r.all_is_well_again()


@pytest.mark.long
async def test_a_file_that_is_damaged_under_a_running_control_is_said_and_refused_at_start(
    tmp: Path,
) -> None:
    async with rig(tmp) as r:
        path = r.program.folder / "state/control.db"
        with path.open("r+b") as file:
            file.write(b"no database " * 4096)
        await asyncio.to_thread(_spoil, path.with_name("control.db-wal"))
        await r.until_health(503)
        await r.program.kill()
        with pytest.raises(AssertionError, match="be opened"):
            await r.program.start()


def _spoil(log: Path) -> None:
    with log.open("r+b") as file:
        file.write(b"\xff" * log.stat().st_size)
