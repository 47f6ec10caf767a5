"""Many clients at once, each doing something else, with cancels, kicks and cuts in between."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from aegis_agent import control_link
from aegis_protocol.board import Board
from aegis_protocol.control_link import JobCancel, JobRevoke, LeaseRevoke, Revocations
from aegis_protocol.errors import AegisError
from aegis_protocol.grant import Execution
from aegis_protocol.states import BoardState
from agent_control import ControlPlane
from agent_stand import Peer, RunningAgent, an_agent, pty_board
from waiting import until

pytestmark = pytest.mark.requires("bwrap")

SLOTS = 3
EXPECTED = {"ok", "agent.busy", "board.busy", "workspace.busy", "link.closed", "job.over"}


class Clients:
    """Each comes once, and leaves in a way that chance decides."""

    def __init__(self, agent: RunningAgent, seed: int) -> None:
        self.agent = agent
        self.outcomes: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311
        self._fence = 0

    async def come(self) -> None:
        self._fence += 1
        wants_board = self._random.random() < 0.4
        boards = {"bench-1": self._fence} if wants_board else {}
        seconds = self._random.choice([1, 600])
        execution = Execution(target="esp32p4", boards=boards, timeout_secs=seconds)
        try:
            async with asyncio.timeout(20), self.agent.peer(execution=execution) as peer:
                await peer.hello()
                await self._do(peer)
            self.outcomes["ok"] += 1
        except AegisError as exc:
            self.outcomes[exc.code] += 1

    async def _do(self, peer: Peer) -> None:
        control = self.agent.control
        match self._random.randrange(7):
            case 0:
                await peer.ask("job.end")
            case 1:
                control.send(JobCancel(job_id=peer.job_id))
                await peer.closing()
            case 2:
                await peer.build({"build.sh": b"cat > /dev/null\n"})
                await peer.ask("job.end")
            case 3:
                started = await peer.build({"build.sh": b"cat > /dev/null\n"})
                await peer.ask("build.cancel", task_id=started.task_id)
            case 4:
                one = JobRevoke(job_id=peer.job_id)
                control.send(Revocations(revocations=(one,), through=1))
            case 5 if peer.claims.execution.boards:
                await peer.ask("monitor.open", board_id="bench-1")
                control.send(LeaseRevoke(board_id="bench-1", fence=self._fence))
            case _:
                async with self.agent.peer(peer.job_id, execution=peer.claims.execution) as other:
                    both = (other.ask("job.end"), peer.ask("job.end"))
                    await asyncio.gather(*both, return_exceptions=True)


@pytest.mark.parametrize("seed", [7, 8])
async def test_a_storm_leaves_the_agent_as_it_was(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(control_link, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(control_link, "_LONGEST_PAUSE_S", 0.05)
    with pty_board() as board:
        async with (
            ControlPlane.running() as control,
            an_agent(control, tmp, board, linger_secs=0.1, slots=SLOTS) as agent,
        ):
            before = len(asyncio.all_tasks())
            clients = Clients(agent, seed)
            for batch in range(12):
                await asyncio.gather(*(clients.come() for _ in range(SLOTS + 1)))
                if batch % 4 == 3:
                    control.cut()
                    await control.linked(again=True)
            assert set(clients.outcomes) <= EXPECTED, clients.outcomes
            assert clients.outcomes["ok"] >= 5
            await until(agent.daemon.jobs.idle, within_s=20)
            await until(lambda: not list((agent.state / "jobs").iterdir()), within_s=10)
            await until(lambda: len(asyncio.all_tasks()) <= before, within_s=10)
            assert list((agent.state / "incoming").iterdir()) == []
            (bench,) = agent.daemon.boards.boards()
            assert isinstance(bench, Board)
            assert bench.state is BoardState.FREE
            for _ in range(2):  # every slot is there again
                async with agent.peer(), agent.peer(), agent.peer():
                    assert len(agent.daemon.jobs.jobs) == SLOTS
                await until(agent.daemon.jobs.idle)
