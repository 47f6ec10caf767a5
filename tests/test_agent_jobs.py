"""Jobs by themselves: their time, their tasks, their slots, and what is told of their end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aegis_agent import jobs as jobs_module
from aegis_agent.boards import BoardRegistry
from aegis_agent.intake import Intake, Why
from aegis_agent.job import Job
from aegis_agent.jobs import JobTable
from aegis_agent.owned_tasks import OwnedTasks, unless
from aegis_agent.tasks import Task
from aegis_links.spool import Spool
from aegis_protocol.control_link import JobMoved
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentBusy
from aegis_protocol.failures.board import BoardNotFound
from aegis_protocol.failures.build import BuildCanceled, BuildFailed, TaskNotFound
from aegis_protocol.failures.grant import GrantInvalid
from aegis_protocol.failures.http import JobCanceled, JobOver
from aegis_protocol.failures.link import LinkClosed
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits
from aegis_protocol.ids import new_id
from aegis_protocol.manifest import Diagnostic
from aegis_protocol.model import Wire
from aegis_protocol.rpc import BuildResult, Empty, TaskChanged
from aegis_protocol.states import JobState, TaskState, ended
from waiting import until

FINGERPRINT = "sha-256:" + ":".join(f"{n:02X}" for n in range(32))


class StuckRegistry(BoardRegistry):
    """A registry whose boards can't be given back."""

    async def release(self, job_id: str) -> None:
        raise RuntimeError("a driver that hangs")


class Listener:
    """A peer that only remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Wire]] = []
        self.closed: list[AegisError | None] = []

    def may_see(self, task: Task) -> bool:
        return True

    def notify(self, method: str, params: Wire) -> None:
        self.told.append((method, params))

    def stream_added(self, task: Task) -> None:
        self.told.append(("added", task.info()))

    @property
    def jti(self) -> str:
        return "01890000-0000-7000-8000-000000000001"

    def stream_removed(self, task: Task) -> None:
        self.told.append(("removed", task.info()))

    def close(self, error: AegisError | None) -> None:
        self.told.append(("close", Empty()))
        self.closed.append(error)

    def states(self) -> list[TaskState]:
        return [params.task.state for _, params in self.told if isinstance(params, TaskChanged)]


class Stand:
    """A table of two slots, and what it told control."""

    def __init__(self, folder: Path, registry: type[BoardRegistry] = BoardRegistry) -> None:
        self.reports: list[JobMoved] = []
        self.linked = True
        self.intake = Intake(lambda: None)
        self.folder = folder / "jobs"
        self.table = JobTable(
            slots=2,
            folder=self.folder,
            boards=registry((), discover=False, state_dir=folder, on_change=lambda _: None),
            intake=self.intake,
            linger_s=0.1,
            report=self._report,
        )

    def _report(self, moved: JobMoved) -> bool:
        if self.linked:
            self.reports.append(moved)
        return self.linked

    def ends(self) -> list[JobMoved]:
        return [moved for moved in self.reports if ended(moved.state)]


def claims(job_id: str | None = None, **changes: object) -> GrantClaims:
    fields: dict[str, object] = {
        "iss": "https://control.example.org",
        "sub": "key-1",
        "aud": "ag-me",
        "jti": new_id(),
        "iat": 0.0,
        "nbf": 0.0,
        "exp": 30.0,
        "job_id": job_id or new_id(),
        "webrtc": WebRtcLimits(allowed_channels=("espctl",), peer_fingerprint=FINGERPRINT),
        "execution": Execution(timeout_secs=600),
    }
    return GrantClaims.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def short_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peers here never leave by themselves."""
    monkeypatch.setattr(jobs_module, "_GOODBYE_S", 0.1)


@pytest.fixture
async def stand(tmp: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp)
    yield made
    await made.table.close(JobState.CANCELED, None)


async def joined(stand: Stand, given: GrantClaims) -> tuple[Job, Listener]:
    job = await stand.table.admit(given)
    peer = Listener()
    job.attach(peer)
    job.joined()
    return job, peer


async def for_ever(task: Task) -> None:
    task.start()
    await asyncio.Event().wait()


async def test_what_lay_in_the_folder_is_gone_at_the_start(tmp: Path) -> None:
    (tmp / "jobs/old/spool").mkdir(parents=True)
    (tmp / "jobs/old/file").touch()
    (tmp / "jobs/old").chmod(0)
    Stand(tmp)
    assert list((tmp / "jobs").iterdir()) == []


async def test_slots_are_given_and_taken_back(stand: Stand) -> None:
    first, second = await stand.table.admit(claims()), await stand.table.admit(claims())
    assert {first.slot, second.slot} == {0, 1}
    with pytest.raises(AgentBusy):
        await stand.table.admit(claims())
    first.end(JobState.SUCCEEDED)
    await until(lambda: len(stand.table.jobs) == 1)
    assert (await stand.table.admit(claims())).slot == first.slot


async def test_a_job_that_can_not_be_made_keeps_no_slot(stand: Stand) -> None:
    for _ in range(5):
        with pytest.raises(BoardNotFound):
            await stand.table.admit(claims(execution=Execution(boards={"none": 1})))
    stand.folder.rmdir()
    for _ in range(5):
        with pytest.raises(AegisError) as full:
            await stand.table.admit(claims())
        assert full.value.code == "agent.disk_full"
    stand.folder.mkdir()
    await stand.table.admit(claims())
    await stand.table.admit(claims())


async def test_a_slot_is_free_even_where_a_board_is_not(tmp: Path) -> None:
    stand = Stand(tmp, StuckRegistry)
    job, peer = await joined(stand, claims())
    job.end(JobState.SUCCEEDED)
    await until(lambda: stand.table.idle())
    assert [moved.state for moved in stand.ends()] == [JobState.SUCCEEDED]
    assert peer.closed == [None]
    await stand.table.admit(claims())
    await stand.table.admit(claims())
    await stand.table.close(JobState.CANCELED, None)


async def test_nothing_is_admitted_while_the_intake_is_closed_but_what_is_there(
    stand: Stand,
) -> None:
    job, _ = await joined(stand, claims())
    stand.intake.close(Why.DISK, "disk 96 %")
    with pytest.raises(AgentBusy, match="disk 96 %"):
        await stand.table.admit(claims())
    assert await stand.table.admit(claims(job.job_id)) is job
    stand.intake.open(Why.DISK)
    await stand.table.admit(claims())


async def test_another_identity_does_not_get_the_job(stand: Stand) -> None:
    job, _ = await joined(stand, claims())
    with pytest.raises(GrantInvalid):
        await stand.table.admit(claims(job.job_id, sub="key-2"))


async def test_an_end_is_asked_for_once(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    reason = JobCanceled("by control")
    job.end(JobState.CANCELED, reason)
    job.end(JobState.SUCCEEDED)
    await until(stand.ends)
    assert [moved.state for moved in stand.ends()] == [JobState.CANCELED]
    assert peer.closed == [reason]


async def test_nothing_begins_in_a_job_that_ends(stand: Stand) -> None:
    job, _ = await joined(stand, claims())
    job.end(JobState.SUCCEEDED)
    for begin in (
        lambda: job.new_task("flash", spool=None),
        lambda: job.attach(Listener()),
        lambda: job.extend(60, max_job_secs=600),
    ):
        with pytest.raises(JobOver):
            begin()
    with pytest.raises(JobOver):
        await stand.table.admit(claims(job.job_id))
    await until(stand.ends)
    with pytest.raises(JobOver):
        await stand.table.admit(claims(job.job_id))


async def test_peers_hear_of_the_last_change_before_they_are_closed(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    with Spool(job.folder / "s") as spool:
        task = job.new_task("build", spool=spool)
        job.run(task, for_ever(task))
        await until(lambda: task.state is TaskState.RUNNING)
        job.end(JobState.CANCELED, JobCanceled("enough"))
        await until(stand.ends)
    assert peer.states() == [TaskState.RUNNING, TaskState.CANCELED]
    assert peer.told[-1][0] == "close"
    assert task.error is not None
    assert task.error.code == "job.canceled"
    job.left(peer)
    await until(lambda: not job.folder.exists())


async def test_a_folder_is_kept_until_its_readers_have_left(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    job.new_task("build", spool=Spool(job.folder / "s"))
    job.end(JobState.SUCCEEDED)
    await until(stand.ends)
    assert job.folder.exists()
    job.left(peer)
    await until(lambda: not job.folder.exists())


async def test_a_reader_that_never_leaves_does_not_keep_the_folder(stand: Stand) -> None:
    job, _ = await joined(stand, claims())
    job.end(JobState.SUCCEEDED)
    await until(lambda: not job.folder.exists())


async def test_a_task_that_is_canceled_before_its_first_step_still_cleans_up(
    stand: Stand,
) -> None:
    job, _ = await joined(stand, claims())
    cleaned = asyncio.Event()

    async def work(task: Task) -> None:
        try:
            await for_ever(task)
        finally:
            cleaned.set()

    task = job.new_task("monitor", spool=None)
    job.run(task, work(task))
    await job.cancel(task)
    assert (task.state, cleaned.is_set()) == (TaskState.CANCELED, True)
    cleaned.clear()
    task = job.new_task("monitor", spool=None)
    job.run(task, work(task))
    job.end(JobState.SUCCEEDED)
    await until(stand.ends)
    assert cleaned.is_set()


async def test_a_defect_in_a_task_fails_it_and_no_more(stand: Stand) -> None:
    job, peer = await joined(stand, claims())

    async def broken(task: Task) -> None:
        task.start()
        raise KeyError("a defect with a secret in its locals")

    task = job.new_task("flash", spool=None)
    job.run(task, broken(task))
    await until(lambda: task.over)
    assert task.error is not None
    assert (task.state, task.error.code) == (TaskState.FAILED, "internal.error")
    assert peer.closed == []


async def test_the_time_of_a_job_counts_from_its_first_connection(stand: Stand) -> None:
    job = await stand.table.admit(claims(execution=Execution(timeout_secs=60)))
    job.ends_at = 0.0
    job.joined()
    first = job.ends_at
    assert first == pytest.approx(time.time() + 60, abs=2)
    job.joined()
    assert job.ends_at == first


async def test_a_job_ends_as_its_last_build_or_flash_did(stand: Stand) -> None:
    job, _ = await joined(stand, claims())
    assert job.outcome() is JobState.SUCCEEDED
    build = job.new_task("build", spool=None)
    assert job.outcome() is JobState.CANCELED  # it runs still
    build.start()
    build.fail(BuildFailed("no"))
    assert job.outcome() is JobState.FAILED
    flash = job.new_task("flash", spool=None)
    flash.start()
    flash.succeed()
    job.new_task("monitor", spool=None)
    assert job.outcome() is JobState.SUCCEEDED


async def test_a_running_monitor_alone_does_not_keep_a_job(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    task = job.new_task("monitor", spool=None)
    job.run(task, for_ever(task))
    job.left(peer)
    await until(stand.ends)
    assert task.state is TaskState.CANCELED


async def test_a_build_without_a_peer_runs_to_its_end(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    go = asyncio.Event()

    async def build(task: Task) -> None:
        task.start()
        await go.wait()
        task.fail(BuildFailed("no"))

    task = job.new_task("build", spool=None)
    job.run(task, build(task))
    job.left(peer)
    with pytest.raises(TimeoutError):
        await until(stand.ends, within_s=0.3)
    go.set()
    await until(stand.ends)
    assert stand.ends()[0].state is JobState.FAILED


async def test_a_writer_that_leaves_lets_others_type(stand: Stand) -> None:
    job, peer = await joined(stand, claims())
    task = job.new_task("monitor", spool=None)
    task.writer = peer
    task.readers.add(peer)
    job.left(peer)
    assert peer is not task.writer
    assert not task.readers


async def test_ends_are_told_again_until_they_are_long_past(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.linked = False
    job, _ = await joined(stand, claims(attempt=4))
    job.end(JobState.FAILED, BuildFailed("no"))
    await until(stand.table.idle)
    (held,) = stand.table.held()
    assert (held.state, held.attempt) == (JobState.FAILED, 4)
    assert held.error is not None
    assert (held.error.code, held.error.message) == ("build.failed", "no")
    stand.linked = True
    stand.table.report_again()
    assert [moved.state for moved in stand.reports] == [JobState.FAILED]
    assert len(stand.table.held()) == 1  # it may have been lost on its way
    monkeypatch.setattr(jobs_module, "_KEEP_ENDS_S", 0.0)
    stand.table.report_again()
    assert stand.table.held() == ()


async def test_a_bounded_number_of_ends_is_kept_the_newest_first(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_KEPT_ENDS", 3)
    ids = []
    for _ in range(5):
        job = await stand.table.admit(claims())
        ids.append(job.job_id)
        job.end(JobState.CANCELED)
        await until(stand.table.idle)
    assert [held.job_id for held in stand.table.held()] == ids[:1:-1]


async def test_projects_built_here_are_told_newest_last(stand: Stand) -> None:
    for key in ("a", "b", "a"):
        job, _ = await joined(stand, claims())
        job.project_key = key
        job.end(JobState.SUCCEEDED)
        await until(stand.table.idle)
    assert stand.table.warm_projects == ("b", "a")


async def test_closing_ends_all_and_waits(stand: Stand) -> None:
    for _ in range(2):
        job, _ = await joined(stand, claims())
        task = job.new_task("build", spool=None)
        job.run(task, for_ever(task))
        job.peers.clear()
    await stand.table.close(JobState.CANCELED, None)
    assert stand.table.idle()
    assert [moved.state for moved in stand.ends()] == [JobState.CANCELED] * 2


async def test_a_task_that_is_unknown_is_named(stand: Stand) -> None:
    job, _ = await joined(stand, claims())
    with pytest.raises(TaskNotFound, match="nobodys"):
        job.task("nobodys")


# Tasks.


def a_task() -> tuple[Task, list[TaskState]]:
    seen: list[TaskState] = []
    return Task("build", task_id="t", on_change=lambda task: seen.append(task.state)), seen


def test_a_tasks_description_fits_a_message_in_any_script() -> None:
    task, _ = a_task()
    task.start()
    diagnostics = tuple(
        Diagnostic(severity="error", file="ф.c", line=n, message="ошибка " * 280) for n in range(50)
    )
    error = BuildFailed("ошибка " * 580, missing=["пакет"] * 5000)
    task.fail(error, build=BuildResult(diagnostics=diagnostics))
    sent = TaskChanged(task=task.info())
    assert len(json.dumps(sent.model_dump(mode="json"))) < 65_000
    assert task.info().error is not None
    assert len(json.dumps(task.summary().model_dump(mode="json"))) < 20_000


def test_a_cancellations_own_error_ends_a_task_as_canceled() -> None:
    task, seen = a_task()
    task.start()
    task.fail(BuildCanceled("by the user"))
    assert seen == [TaskState.RUNNING, TaskState.CANCELED]


def test_a_disk_that_is_full_does_not_hide_the_end(tmp: Path) -> None:
    seen: list[TaskState] = []
    spool = Spool(tmp / "spool")
    task = Task("build", task_id="t", on_change=lambda t: seen.append(t.state), spool=spool)
    (tmp / "spool").rename(tmp / "elsewhere")
    task.start()
    task.succeed()
    assert seen == [TaskState.RUNNING, TaskState.SUCCEEDED]
    (tmp / "elsewhere").rename(tmp / "spool")
    spool.close()


# What they stand on.


async def test_owned_tasks_end_with_what_they_start_meanwhile() -> None:
    ended_too = asyncio.Event()

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended_too.set()

    async def first(owned: OwnedTasks) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            owned.start(last(), name="last")
            await asyncio.sleep(0)

    async with OwnedTasks() as owned:
        owned.start(first(owned), name="first")
        await asyncio.sleep(0)
    assert len(owned) == 0
    assert ended_too.is_set()


async def test_unless_gives_the_result_or_nothing_and_leaves_no_task() -> None:
    stop = asyncio.Event()

    async def work() -> int:
        return 7

    async def wait() -> int:
        await asyncio.Event().wait()
        return 7

    async def fail() -> int:
        raise LinkClosed("no")

    assert await unless(stop, work()) == 7
    with pytest.raises(LinkClosed):
        await unless(stop, fail())
    asyncio.get_running_loop().call_soon(stop.set)
    assert await unless(stop, wait()) is None
    assert len(asyncio.all_tasks()) == 1


def test_several_may_close_the_intake_and_each_opens_only_its_own() -> None:
    changes: list[tuple[str | None, bool]] = []
    intake = Intake(lambda: changes.append((intake.reason, intake.draining)))
    intake.close(Why.DISK, "disk 96 %")
    intake.close(Why.PAUSE, "disk 1 %, says the operator")
    intake.open(Why.DISK)
    intake.close(Why.PAUSE, "disk 1 %, says the operator")  # which is no change
    intake.close(Why.STOPPING, "x" * 300)
    intake.open(Why.PAUSE, Why.DRAIN)
    assert changes == [
        ("disk 96 %", False),
        ("disk 1 %, says the operator", False),
        ("disk 1 %, says the operator", False),
        ("x" * 200, True),
        ("x" * 200, True),
    ]
