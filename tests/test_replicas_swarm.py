"""Three controls on one PostgreSQL behind a balancer, real programs all; one dies in the middle."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aegis_client.accounts import Account
from aegis_client.config import ClientConfig
from aegis_client.control import ControlClient
from aegis_client.failures import AnswerOverdue
from aegis_client.signals import Signals
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply
from aegis_protocol.ids import new_id
from aegis_protocol.states import JobState, ended
from control_fixtures import FINGERPRINT, sdp
from databases import postgres, postgres_url
from replica_stand import ReplicaStand
from waiting import until
from working_agent import Run, WorkingAgent

__all__ = ["postgres", "postgres_url"]

AGENTS = 10
SLOTS = 2
CLIENTS = 20
JOBS = 200
TRIES = 3
WORK_S = 0.5
LIMIT_S = 300.0


RECOVERED_S = 15.0
"""So long after it died a replica is buried, and its agents and clients are elsewhere."""


@dataclass
class Life:
    """
    A job as its client had it.

    job_id  None: control never said it
    ended   when the client knew how it ended, or gave up
    error   what was left after all tries
    """

    began: float
    job_id: str | None = None
    ended: float = math.inf
    error: AegisError | None = None

    def overlaps(self, begin: float, end: float) -> bool:
        return self.began < end and self.ended > begin


@dataclass
class Seen:
    """What the clients saw."""

    lives: list[Life] = field(default_factory=list)

    @property
    def ends(self) -> int:
        return sum(life.ended < math.inf for life in self.lives)


async def an_account(session: aiohttp.ClientSession, stand: ReplicaStand) -> Account:
    """A client of its own, with a key of its own."""
    async with session.post(
        f"{stand.url}/services/keys",
        json={"role": "builder"},
        headers={"Authorization": f"Bearer {stand.operator_key()}"},
    ) as answer:
        assert answer.status == 201, await answer.text()
        return Account(stand.url, (await answer.json())["key"], "the test", "the test")


async def a_job(control: ControlClient, life: Life) -> None:
    """Ask for a job, wait for an agent, connect, see it run to its end: as espctl does."""
    request = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
    reply = await control.request_grant(request, idempotency_key=new_id())
    life.job_id = reply.job_id
    again = request.model_copy(update={"job_id": reply.job_id})
    async with Signals.listening(control, reply.job_id) as signals:
        for left in range(TRIES - 1, -1, -1):
            try:
                await _connected(control, signals, again, reply)
                break
            except AegisError as exc:
                if signals.over() is not None:
                    break
                if not exc.retryable or left == 0:
                    raise
            await asyncio.sleep(2.0)
            reply = await control.request_grant(again)
        while not ended((await control.job(reply.job_id)).state):
            await asyncio.sleep(0.5)


async def _connected(
    control: ControlClient,
    signals: Signals,
    again: GrantRequest,
    reply: GrantReply | PendingReply,
) -> None:
    async with asyncio.timeout(LIMIT_S):
        while isinstance(reply, PendingReply):
            try:
                async with asyncio.timeout(3):
                    await signals.until(lambda: signals.assigned or signals.over())
            except TimeoutError:
                pass
            over = signals.over()
            if over is not None:
                raise over
            signals.assigned = False
            reply = await control.request_grant(again)
    offered = await control.offer(reply.job_id, reply.grant, sdp())
    try:
        async with asyncio.timeout(10):
            await signals.answer(offered.jti)
    except TimeoutError as exc:
        raise AnswerOverdue("the agent's answer did not come within 10 s") from exc


def overlaps(agents: list[WorkingAgent]) -> list[tuple[Run, Run]]:
    """Runs of one job, wherever, that went on at the same time."""
    runs = sorted((run for agent in agents for run in agent.runs), key=lambda run: run.job_id)
    found = []
    for _, of_job in itertools.groupby(runs, key=lambda run: run.job_id):
        for one, other in itertools.combinations(of_job, 2):
            assert one.ended is not None and other.ended is not None
            if one.began < other.ended and other.began < one.ended:
                found.append((one, other))
    return found


def most_at_once(agent: WorkingAgent) -> int:
    """How many jobs the agent ran at the same time, at most."""
    steps = [(run.began, 1) for run in agent.runs]
    steps += [(run.ended, -1) for run in agent.runs if run.ended is not None]
    return max(itertools.accumulate(step for _, step in sorted(steps)), default=0)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_replica_that_is_killed_costs_no_job_and_no_client_an_untyped_error(
    tmp: Path, postgres_url: str
) -> None:
    seen = Seen()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        stand = await stack.enter_async_context(
            ReplicaStand.open(
                tmp,
                postgres_url,
                count=3,
                AEGIS_ABSENT_AFTER_SECS="20",
                AEGIS_CONNECT_GRACE_SECS="15",
                AEGIS_LOST_AFTER_SECS="30",
                AEGIS_FAILED_AFTER_SECS="20",
            )
        )
        agents = [
            WorkingAgent(session, stand.url, name=f"agent-{number}", slots=SLOTS)
            for number in range(AGENTS)
        ]
        for agent in agents:
            await agent.enroll()
            await stack.enter_async_context(agent.living(work_s=WORK_S))
        await until(lambda: all(agent.links for agent in agents), within_s=60)

        left = iter(range(JOBS))
        accounts = [await an_account(session, stand) for _ in range(CLIENTS)]

        async def client(account: Account) -> None:
            async with ControlClient.connected(ClientConfig(), account) as control:
                for _ in left:
                    life = Life(time.monotonic())
                    seen.lives.append(life)
                    try:
                        await a_job(control, life)
                    except AegisError as exc:
                        life.error = exc
                    life.ended = time.monotonic()

        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as clients:
            for account in accounts:
                clients.create_task(client(account))
            await until(lambda: seen.ends >= JOBS // 4, within_s=LIMIT_S)
            killed_at = time.monotonic()
            await stand.replicas[1].kill()

        operator = Account(stand.url, stand.operator_key(), "the test", "the test")
        async with ControlClient.connected(ClientConfig(), operator) as control:
            async with asyncio.timeout(LIMIT_S):
                while any(not ended(job.state) for job in (await control.jobs()).jobs):
                    await asyncio.sleep(0.5)
            states = {job.id: job.state for job in (await control.jobs()).jobs}
        await until(lambda: not any(run.ended is None for a in agents for run in a.runs))
        assert stand.replicas[1].process is not None
        assert stand.replicas[1].process.returncode == -9
        said = "".join(replica.said() for replica in stand.replicas)
    assert len(seen.lives) == JOBS
    assert all(ended(state) for state in states.values())
    assert {life.job_id for life in seen.lives} - {None} <= states.keys()
    assert overlaps(agents) == []
    assert max(most_at_once(agent) for agent in agents) <= SLOTS
    attempts = [(run.job_id, run.attempt) for agent in agents for run in agent.runs]
    assert len(attempts) == len(set(attempts))
    errors = [life.error for life in seen.lives if life.error is not None]
    assert all(error.code != AegisError.code for error in errors), errors
    placed = Counter(job_id for job_id, _ in attempts)
    for life in seen.lives:
        if life.overlaps(killed_at, killed_at + RECOVERED_S):
            continue
        assert life.error is None, (life, said)
        assert life.job_id is not None and states[life.job_id] is JobState.SUCCEEDED, (life, said)
        assert placed[life.job_id] == 1, (life, said)
    untouched = sum(not life.overlaps(killed_at, killed_at + RECOVERED_S) for life in seen.lives)
    assert untouched >= JOBS // 4
