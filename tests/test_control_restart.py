"""A single control, a real program, ends in the middle of builds and comes back."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aegis_client.accounts import Account
from aegis_client.config import ClientConfig
from aegis_client.control import ControlClient
from aegis_client.sse import SseParser
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.grants import GrantReply, GrantRequest
from aegis_protocol.http_api.jobs import Job
from aegis_protocol.states import JobState, ended
from control_fixtures import FINGERPRINT, sdp
from replica_stand import MCP, ReplicaStand
from waiting import until
from working_agent import WorkingAgent

JOBS = 3
WORK_S = 600.0


@dataclass
class Stream:
    """The events of one job, as a client that resumes has seen them."""

    job_id: str
    ids: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    opened: int = 0

    async def read(self, control: ControlClient) -> None:
        """Read until the job is over; each time the stream breaks, go on after the last event."""
        last, over = "", False
        while not over:
            over = ended((await self._job(control)).state)
            try:
                path = f"/signaling/{self.job_id}/events"
                async with control.event_bytes(path, last) as pieces:
                    parser = SseParser(last)
                    async for piece in pieces:
                        for event in parser.feed(piece):
                            self.opened += event.type == "connected"
                            if event.type != "connected" and event.id != last:
                                self.ids.append(int(event.id))
                                self.types.append(event.type)
                            last = event.id
            except AegisError as exc:
                assert exc.retryable, exc
                over = False
            await asyncio.sleep(0.2)

    async def _job(self, control: ControlClient) -> Job:
        while True:
            try:
                return await control.job(self.job_id)
            except AegisError as exc:
                assert exc.retryable, exc
                await asyncio.sleep(0.2)


def stored_ids(folder: Path, job_id: str) -> list[int]:
    path = folder / "replica-0/state/control.db"
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT id FROM job_events WHERE job_id = ? ORDER BY id", (job_id,)
        )
        return [row[0] for row in rows]


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_builds_go_on_and_no_event_is_missed_or_seen_twice_over_a_restart(
    tmp: Path, how: str
) -> None:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        stand = await stack.enter_async_context(ReplicaStand.open(tmp))
        agent = WorkingAgent(session, stand.url, slots=JOBS)
        await agent.enroll()
        await stack.enter_async_context(agent.living(work_s=WORK_S))
        await until(lambda: agent.links, within_s=20)
        account = Account(stand.url, MCP, "the test", "the test")
        control = await stack.enter_async_context(ControlClient.connected(ClientConfig(), account))
        request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
        grants = []
        for _ in range(JOBS):
            reply = await control.request_grant(request)
            assert isinstance(reply, GrantReply)
            grants.append(reply)
        streams = [Stream(grant.job_id) for grant in grants]
        async with asyncio.timeout(100), asyncio.TaskGroup() as reading:
            for stream in streams:
                reading.create_task(stream.read(control))
            await until(lambda: all(stream.opened for stream in streams), within_s=30)
            for grant in grants:
                await control.offer(grant.job_id, grant.grant, sdp())
            await until(lambda: len(agent.runs) == JOBS, within_s=30)
            replica = stand.replicas[0]
            await (replica.kill() if how == "kill" else replica.stop())
            assert all(run.ended is None for run in agent.runs)
            await replica.start()
            await until(lambda: agent.links >= 2, within_s=30)
            agent.finish()
        assert [run.state for run in agent.runs] == [JobState.SUCCEEDED] * JOBS
        assert [run.attempt for run in agent.runs] == [1] * JOBS
        for stream in streams:
            assert stream.opened >= 2
            assert (await control.job(stream.job_id)).state is JobState.SUCCEEDED
            known = stored_ids(tmp, stream.job_id)
            assert stream.ids == known[known.index(stream.ids[0]) :]
            assert stream.types[-1] == "closed"
