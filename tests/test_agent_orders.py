"""What operators order of an agent, by frame and by welcome, and what it orders of itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aegis_agent import control_link
from aegis_agent.intake import Intake, Why
from aegis_agent.quarantine import Quarantine
from aegis_agent.sandbox import Sandbox
from aegis_protocol.control_link import Drain, Pause, Reset, Resume, Standing, Status
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.build import BuildCanceled, BuildFailed, SandboxUnavailable
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.states import JobState, Order
from agent_control import ControlPlane
from agent_stand import HELLO, an_agent, rejection
from waiting import until

BROKEN = SandboxUnavailable("bwrap: no namespaces")


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "_FIRST_PAUSE_S", 0.05)


async def test_a_drain_with_a_deadline_cancels_what_still_runs_then(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        control.send(Drain(reason="new disk", deadline_secs=0.2))
        status = await control.heard(Status)
        assert (status.paused, status.draining) == ("new disk", True)
        moved = await agent.moved(peer.job_id)
        assert moved.state is JobState.CANCELED
        assert moved.error is not None and "drained" in moved.error.message


async def test_a_drain_that_is_taken_back_cancels_nothing_at_its_deadline(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        control.send(Drain(deadline_secs=600))
        await until(lambda: agent.daemon.intake.draining)
        control.send(Resume())
        await until(lambda: not agent.daemon.intake.draining)
        assert "drain-deadline" not in {
            task.get_name() for task in agent.daemon._owned._tasks if not task.cancelling()
        }
        await peer.hello()


@pytest.mark.parametrize(
    ("ordered", "draining"),
    [(Order.PAUSED, False), (Order.DRAINING, True), (Order.QUARANTINED, False)],
)
async def test_what_stands_ordered_is_told_again_in_the_welcome(
    control: ControlPlane, tmp: Path, ordered: Order, draining: bool
) -> None:
    async with an_agent(control, tmp) as agent:
        control.standing = Standing(ordered=ordered, reason="the lab moves")
        control.cut()
        status = await control.heard(Status)
        assert (status.paused, status.draining) == ("the lab moves", draining)
        assert (await rejection(agent)).error.code == "agent.busy"
        control.standing = Standing()
        control.cut()
        await control.heard(Status, lambda s: s.paused is None)
        async with agent.peer() as peer:
            await peer.hello()


async def test_a_forced_drain_of_an_agent_without_a_link_is_done_when_it_is_back(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        control.standing = Standing(ordered=Order.DRAINING, deadline_secs=0)
        control.cut()
        assert (await agent.moved(peer.job_id)).state is JobState.CANCELED


async def test_an_order_leaves_alone_what_the_agent_says_of_itself(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent:
        agent.daemon.intake.close(Why.DISK, "disk 96 %")
        control.send(Pause(reason="the lab moves"))
        await control.heard(Status, lambda s: s.paused == "the lab moves")
        control.send(Resume())
        await until(lambda: agent.daemon.intake.reason == "disk 96 %")


# Quarantine.


def intake() -> Intake:
    return Intake(lambda: None)


def test_three_builds_in_a_row_that_fail_by_the_agents_fault_quarantine_it(tmp: Path) -> None:
    doors = intake()
    quarantine = Quarantine(tmp / "q.json", doors)
    for error in (BROKEN, AegisError("a defect")):
        quarantine.noted(error)
    assert doors.reason is None
    quarantine.noted(ValueError("a worse one"))
    reason = quarantine.reason or ""
    assert "3 builds in a row" in reason and "ValueError" in reason
    assert doors.reason == reason


@pytest.mark.parametrize("ended", [None, BuildFailed("main.c:1: no"), DiskFull("of the project")])
def test_what_a_project_does_shows_that_the_machine_works(
    tmp: Path, ended: AegisError | None
) -> None:
    quarantine = Quarantine(tmp / "q.json", intake())
    for error in (BROKEN, BROKEN, ended, BROKEN, BROKEN):
        quarantine.noted(error)
    assert quarantine.reason is None


def test_a_canceled_build_says_nothing_of_the_machine(tmp: Path) -> None:
    quarantine = Quarantine(tmp / "q.json", intake())
    for error in (BROKEN, BROKEN, BuildCanceled("canceled"), BROKEN):
        quarantine.noted(error)
    assert quarantine.reason is not None


def test_a_quarantine_outlives_the_agent_until_a_reset_that_it_had_not_heard_of(
    tmp: Path,
) -> None:
    first = Quarantine(tmp / "q.json", intake())
    first.reset(4)
    for _ in range(3):
        first.noted(BROKEN)
    doors = intake()
    again = Quarantine(tmp / "q.json", doors)
    assert (again.reason, again.resets) == (first.reason, 4)
    again.reset(4)
    assert doors.closed_by(Why.QUARANTINE)
    again.reset(5)
    assert (again.reason, doors.reason) == (None, None)
    assert Quarantine(tmp / "q.json", intake()).resets == 5


def test_a_damaged_file_is_no_quarantine(tmp: Path) -> None:
    (tmp / "q.json").write_text("{")
    assert Quarantine(tmp / "q.json", intake()).reason is None


async def test_an_agent_whose_sandbox_broke_takes_no_more_jobs_until_it_is_reset(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_agent(control, tmp, linger_secs=0.1) as agent:

        async def broken(_: Sandbox) -> None:
            raise BROKEN

        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "check", broken)
            async with agent.peer() as peer:
                await peer.hello()
                plan_id = await peer.upload(HELLO)
                for _ in range(3):
                    with pytest.raises(SandboxUnavailable):
                        await peer.ask("build.start", plan_id=plan_id, target="esp32p4")
        status = await control.heard(Status, lambda s: s.quarantined is not None)
        assert status.paused == status.quarantined and status.resets == 0
        assert (await rejection(agent)).error.code == "agent.busy"
        control.cut()
        hello = await control.linked(again=True)
        assert hello.quarantined == status.quarantined
        assert (await rejection(agent)).error.code == "agent.busy"
        control.send(Reset(resets=1))
        await control.heard(Status, lambda s: s.quarantined is None and s.resets == 1)
        async with agent.peer() as peer:
            await peer.hello()
            await peer.built()
