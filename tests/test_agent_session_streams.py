"""Who sees and who types: the terminals of builds and the consoles of boards, between peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aegis_agent.tasks import Task
from aegis_protocol.actions import Action
from aegis_protocol.board import Board
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import JobRejected, LeaseRevoke
from aegis_protocol.errors import AegisError
from aegis_protocol.grant import Execution
from aegis_protocol.rpc import MonitorOpenResult, TaskInfo
from aegis_protocol.states import BoardState, JobState, TaskState
from agent_control import ControlPlane
from agent_stand import Peer, PtyBoard, RunningAgent, an_agent, an_offer, pty_board, rejection
from waiting import until

pytestmark = pytest.mark.requires("bwrap")

ASKS = {"build.sh": b"stty -echo; stty size; while read line; do echo got:$line; stty size; done\n"}
"""A build that answers each line and tells the terminal's size."""
BENCH = Execution(target="esp32p4", boards={"bench-1": 7})
READS = (Action.BUILD_READ, Action.CONSOLE_READ, Action.BOARD_READ)


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture
def board() -> Iterator[PtyBoard]:
    with pty_board() as made:
        yield made


@pytest.fixture
async def agent(control: ControlPlane, tmp: Path, board: PtyBoard) -> AsyncIterator[RunningAgent]:
    async with an_agent(control, tmp, board, linger_secs=0.5) as made:
        yield made


async def monitor(peer: Peer, **more: object) -> MonitorOpenResult:
    params = {"board_id": "bench-1", "baud": 115_200, **more}
    return MonitorOpenResult.model_validate(await peer.ask("monitor.open", **params))


async def test_who_starts_a_build_types_and_another_does_once_that_one_has_left(
    agent: RunningAgent,
) -> None:
    async with agent.peer() as second_job_holder:
        await second_job_holder.hello()
        job_id = second_job_holder.job_id
        async with agent.peer(job_id) as first:
            await first.hello()
            started = await first.build(ASKS)
            async with first.view(ChannelName.PTY, started.stream) as screen:
                await screen.shows("24 80")
                await screen.viewer.send_input(b"one\n")
                await screen.shows("got:one")
                async with second_job_holder.view(ChannelName.PTY, started.stream) as other:
                    await other.shows("got:one")  # all of it, from the beginning
                    await other.viewer.send_input(b"intruder\n")
                    await other.viewer.resize(40, 10)
                    await second_job_holder.hello()  # what came before has been taken
                    await screen.viewer.send_input(b"two\n")
                    await screen.shows("got:two\r\n24 80")
                    assert b"intruder" not in screen.data
        async with second_job_holder.view(ChannelName.PTY, started.stream) as left:
            await until(lambda: len(agent.daemon.jobs.jobs[0].peers) == 1)
            await left.viewer.resize(100, 30)
            await left.viewer.send_input(b"three\n")
            await left.shows("got:three\r\n30 100")
        await second_job_holder.ask("build.cancel", task_id=started.task_id)


async def test_a_peer_that_may_only_read_neither_types_nor_resizes(agent: RunningAgent) -> None:
    async with agent.peer() as owner:
        await owner.hello()
        started = await owner.build(ASKS)
        async with (
            agent.peer(owner.job_id, actions=READS) as reader,
            reader.view(ChannelName.PTY, started.stream) as screen,
        ):
            await reader.hello()
            await screen.shows("24 80")
            task = agent.daemon.jobs.jobs[0].tasks[started.task_id]
            task.writer = None  # nobody types: still not the one who may not
            await screen.viewer.send_input(b"no\n")
            await screen.viewer.resize(40, 10)
            await reader.hello()
            assert task.writer is None
            async with owner.view(ChannelName.PTY, started.stream) as typing:
                await typing.viewer.send_input(b"yes\n")
                await typing.shows("got:yes\r\n24 80")
                assert b"got:no" not in typing.data
        await owner.ask("build.cancel", task_id=started.task_id)


async def test_a_peer_without_build_read_gets_no_terminal(agent: RunningAgent) -> None:
    async with agent.peer() as owner:
        await owner.hello()
        started = await owner.build(ASKS)
        async with (
            agent.peer(owner.job_id, actions=(Action.CONSOLE_READ,)) as other,
            other.view(ChannelName.PTY, started.stream) as screen,
            owner.view(ChannelName.PTY, started.stream) as shown,
        ):
            await shown.shows("24 80")
            await other.hello()
            assert screen.data == b""
        await owner.ask("build.cancel", task_id=started.task_id)


async def test_a_console_has_several_readers_and_one_writer(
    agent: RunningAgent, board: PtyBoard
) -> None:
    async with agent.peer(execution=BENCH) as first:
        await first.hello()
        one = await monitor(first)
        assert (one.writer, one.offset) == (True, 0)
        async with agent.peer(first.job_id, execution=BENCH) as second:
            await second.hello()
            two = await monitor(second)
            assert (two.task_id, two.stream, two.writer) == (one.task_id, one.stream, False)
            async with (
                first.view(ChannelName.SERIAL, one.stream) as a,
                second.view(ChannelName.SERIAL, two.stream) as b,
            ):
                board.prints(b"boot\r\n")
                await a.shows("boot")
                await b.shows("boot")
                await b.viewer.send_input(b"intruder")
                await second.hello()
                await a.viewer.send_input(b"hello")
                assert b"intruder" not in await board.typed(b"hello")
                # One of two closes: the other reads on, and may type now.
                closed = await first.ask("monitor.close", task_id=one.task_id)
                assert closed["state"] == "running"
                board.prints(b"still here\r\n")
                await b.shows("still here")
                await b.viewer.send_input(b"mine")
                await board.typed(b"mine")
            ended = TaskInfo.model_validate(await second.ask("monitor.close", task_id=one.task_id))
            assert ended.state is TaskState.CANCELED
            assert (await monitor(second)).task_id != one.task_id


async def test_a_console_that_its_reader_left_is_found_again_with_all_it_said(
    agent: RunningAgent, board: PtyBoard
) -> None:
    async with agent.peer(execution=BENCH) as keeper:
        await keeper.hello()
        async with agent.peer(keeper.job_id, execution=BENCH) as first:
            await first.hello()
            opened = await monitor(first)
            board.prints(b"one ")
            async with first.view(ChannelName.SERIAL, opened.stream) as screen:
                await screen.shows("one ")
        board.prints(b"two")
        again = await monitor(keeper)
        assert (again.task_id, again.writer) == (opened.task_id, True)
        async with keeper.view(ChannelName.SERIAL, again.stream) as screen:
            await screen.shows("one two")


async def test_a_board_that_the_grant_does_not_hold_is_not_there(agent: RunningAgent) -> None:
    async with (
        agent.peer(execution=BENCH) as holder,
        agent.peer(holder.job_id) as other,  # of the same job, with a grant of no board
        agent.peer() as stranger,
    ):
        for peer in (holder, other, stranger):
            await peer.hello()
        listed = await holder.ask("boards.list")
        assert [Board.model_validate(b).state for b in listed["boards"]] == [BoardState.HELD]
        for peer in (other, stranger):
            assert (await peer.ask("boards.list"))["boards"] == []
            for method in ("monitor.open", "board.reset", "flash.start"):
                with pytest.raises(AegisError) as refused:
                    await peer.ask(method, board_id="bench-1", task_id="x")
                assert refused.value.code == "board.not_granted"


async def test_a_board_goes_back_with_its_job(agent: RunningAgent, board: PtyBoard) -> None:
    async with agent.peer(execution=BENCH) as first:
        await first.hello()
        await monitor(first)
        busy = await rejection(agent, execution=BENCH)
        assert busy.error.code == "board.busy"
        await first.ask("job.end")
        await agent.moved(first.job_id)
    async with agent.peer(execution=BENCH) as second:
        await second.hello()
        assert (await monitor(second)).offset == 0


async def test_an_offer_that_fails_for_its_boards_takes_neither_slot_nor_board(
    agent: RunningAgent,
) -> None:
    both = Execution(target="esp32p4", boards={"bench-1": 1, "bench-9": 1})
    for _ in range(5):
        refused = await rejection(agent, execution=both)
        assert refused.error.code == "board.not_found"
    assert agent.daemon.jobs.idle()
    async with agent.peer(execution=BENCH), agent.peer():
        assert len(agent.daemon.jobs.jobs) == 2


async def test_each_grant_of_a_job_is_checked_for_its_fence(agent: RunningAgent) -> None:
    async with agent.peer(execution=BENCH) as first:
        offered = await an_offer()
        low = Execution(target="esp32p4", boards={"bench-1": 6})
        stale = agent.control.claims(
            agent.id, offered.fingerprint, job_id=first.job_id, execution=low
        )
        agent.control.offer(stale, offered.sdp)
        refused = await agent.control.heard(JobRejected)
        assert refused.error.code == "grant.stale"
        high = Execution(target="esp32p4", boards={"bench-1": 9})
        async with agent.peer(first.job_id, execution=high) as second:
            await second.hello()
        assert agent.daemon.jobs.jobs[0].boards == {"bench-1": 9}


async def test_a_kick_ends_the_job_that_holds_the_board_up_to_that_fence(
    agent: RunningAgent,
) -> None:
    async with agent.peer(execution=BENCH) as peer, agent.peer() as other:
        await peer.hello()
        opened = await monitor(peer)
        agent.control.send(LeaseRevoke(board_id="bench-1", fence=6))
        agent.control.send(LeaseRevoke(board_id="bench-2", fence=99))
        await agent.control.pinged()
        await peer.hello()  # an older holding, another board
        agent.control.send(LeaseRevoke(board_id="bench-1", fence=7))
        why = await peer.closing()
        assert why is not None
        assert why.code == "job.canceled"
        assert peer.changes(opened.task_id)[-1].state is TaskState.CANCELED
        assert (await agent.moved(peer.job_id)).state is JobState.CANCELED
        await other.hello()


async def test_a_kick_lets_a_flash_finish_unless_it_is_forced(agent: RunningAgent) -> None:
    async with agent.peer(execution=BENCH) as peer:
        await peer.hello()
        job = agent.daemon.jobs.jobs[0]
        flash = job.new_task("flash", spool=None, board_id="bench-1")
        writing = FlashByHand(flash)
        job.run(flash, writing.run())
        agent.control.send(LeaseRevoke(board_id="bench-1", fence=7))
        await until(lambda: job.ending)
        with pytest.raises(AegisError) as refused:
            await monitor(peer)
        assert refused.value.code == "job.over"
        assert not flash.over
        writing.finish()
        await peer.closing()
        assert peer.changes(flash.task_id)[-1].state is TaskState.SUCCEEDED
        assert (await agent.moved(peer.job_id)).state is JobState.CANCELED
    async with agent.peer(execution=Execution(boards={"bench-1": 8})) as peer:
        await peer.hello()
        job = agent.daemon.jobs.jobs[0]
        flash = job.new_task("flash", spool=None, board_id="bench-1")
        job.run(flash, FlashByHand(flash).run())
        agent.control.send(LeaseRevoke(board_id="bench-1", fence=8, force=True))
        await peer.closing()
        assert peer.changes(flash.task_id)[-1].state is TaskState.CANCELED


class FlashByHand:
    """A flash that lasts until the test says so."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._finished = asyncio.Event()

    async def run(self) -> None:
        self._task.start()
        await self._finished.wait()
        self._task.succeed()

    def finish(self) -> None:
        self._finished.set()
