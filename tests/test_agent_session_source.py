"""What a peer sends and builds: hostile plans, uploads that are cut, builds, logs, artifacts."""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aegis_agent import build_work
from aegis_links.spool import Spool
from aegis_links.transfers import TransferPort
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import Facts, JobCancel
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import TransferRefused
from aegis_protocol.frames import TransferData, decode_transfer_frame
from aegis_protocol.grant import Execution
from aegis_protocol.rpc import LogsTailResult, SourcePlanResult, TaskInfo
from aegis_protocol.source import SourcePlan
from aegis_protocol.states import TaskState
from agent_control import ControlPlane
from agent_stand import HELLO, Peer, RunningAgent, an_agent, missing_of
from build_stand import UID_BASE, USERS, plan_of
from waiting import until

pytestmark = pytest.mark.requires("bwrap")

WAITS = {"build.sh": b"echo started; cat > /dev/null\n"}
"""A build that runs until it is canceled."""
FILES = {"build.sh": b"true\n", "a.txt": os.urandom(40_000), "b.txt": os.urandom(400_000)}


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture
async def agent(control: ControlPlane, tmp: Path) -> AsyncIterator[RunningAgent]:
    async with an_agent(control, tmp, linger_secs=0.5, slots=4) as made:
        yield made


@pytest.fixture
async def peer(agent: RunningAgent) -> AsyncIterator[Peer]:
    async with agent.peer() as made:
        await made.hello()
        yield made


def raw_plan(*files: dict[str, Any], links: tuple[dict[str, Any], ...] = ()) -> bytes:
    """A plan as a client writes it who keeps to no rule."""
    plan = {"project_id": "p", "installation_id": "i", "files": files, "links": links}
    return json.dumps(plan).encode()


def a_file(path: str, **changes: Any) -> dict[str, Any]:
    return {"path": path, "size_bytes": 1, "sha256": sha256(b"x").hexdigest()} | changes


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (raw_plan(a_file("../../etc/passwd")), "source.path_unsafe"),
        (raw_plan(a_file("/etc/passwd")), "source.path_unsafe"),
        (raw_plan(a_file("a/./b")), "source.path_unsafe"),
        (raw_plan(a_file("a//b")), "source.path_unsafe"),
        (raw_plan(a_file("a\x00b")), "source.path_unsafe"),
        (raw_plan(a_file("a\nb")), "source.path_unsafe"),
        (raw_plan(a_file("a\\b")), "source.path_unsafe"),
        (raw_plan(a_file("a"), a_file("a")), "source.path_unsafe"),
        (raw_plan(a_file("a"), a_file("a/b")), "source.path_unsafe"),
        (raw_plan(a_file("/".join("d" * 80))), "source.path_unsafe"),
        (raw_plan(links=({"path": "l", "target": "../x"},)), "source.symlink_unsafe"),
        (raw_plan(links=({"path": "l", "target": "/etc"},)), "source.symlink_unsafe"),
        (raw_plan(links=({"path": "l", "target": "a"},)).replace(b'"l"', b'"\\ud800"'), ""),
        (raw_plan(a_file("a", size_bytes=1 << 39)), "source.too_large"),
        (raw_plan(a_file("a"), a_file("b", size_bytes=2)), "request.invalid"),
        (raw_plan(a_file("a", sha256="../../x")), "request.invalid"),
        (raw_plan(a_file("a", size_bytes=-1)), "request.invalid"),
        (raw_plan(*(a_file(f"f{n}") for n in range(50_001))), "request.invalid"),
        (b"[" * 100_000, "request.invalid"),
        (b"\xff\xfe", "request.invalid"),
        (b"{}", "request.invalid"),
    ],
)
async def test_a_hostile_plan_is_refused_and_leaves_nothing(
    peer: Peer, plan: bytes, code: str
) -> None:
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.plan", plan=await peer.send(plan))
    assert refused.value.code in ({code} if code else {"source.path_unsafe", "request.invalid"})
    await nothing_is_left(peer.agent)


async def test_a_plan_that_is_larger_than_any_is_refused_before_a_byte_of_it(peer: Peer) -> None:
    ref = {"transfer": 7, "size_bytes": 1 << 30, "sha256": "0" * 64}
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.plan", plan=ref)
    assert refused.value.code == "source.too_large"


async def test_a_plan_of_another_digest_is_thrown_away(peer: Peer) -> None:
    ref = await peer.send(raw_plan(a_file("a")), sha256="0" * 64)
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.plan", plan=ref)
    assert refused.value.code == "transfer.digest_mismatch"
    await nothing_is_left(peer.agent)


async def test_only_what_is_missing_is_asked_for(peer: Peer) -> None:
    first = await peer.plan(plan_of(FILES))
    assert first.missing_count == 3
    await peer.upload(FILES)
    assert (await peer.plan(plan_of(FILES))).missing_count == 0
    changed = FILES | {"a.txt": b"new"}
    assert (await peer.plan(plan_of(changed))).missing_bytes == 3


async def test_a_pack_may_be_compressed(peer: Peer) -> None:
    planned = await peer.plan(plan_of(FILES))
    pack = zlib.compress(missing_of(plan_of(FILES), planned, FILES))
    ref = await peer.send(pack)
    await peer.ask("source.push", plan_id=planned.plan_id, pack=ref, compression="deflate")
    assert (await peer.plan(plan_of(FILES))).missing_count == 0


async def test_a_pack_for_a_plan_that_nobody_knows_is_refused(peer: Peer) -> None:
    ref = await peer.send(b"x")
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.push", plan_id="nobodys", pack=ref)
    assert refused.value.code == "source.plan_unknown"


async def test_a_pack_that_is_larger_than_what_is_missing_is_refused_at_once(peer: Peer) -> None:
    planned = await peer.plan(plan_of({"build.sh": b"true\n"}))
    ref = {"transfer": 9, "size_bytes": 1 << 30, "sha256": "0" * 64}
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.push", plan_id=planned.plan_id, pack=ref)
    assert refused.value.code == "source.too_large"


async def test_a_pack_with_another_file_in_it_keeps_only_what_is_right(peer: Peer) -> None:
    plan = plan_of(FILES)
    planned = await peer.plan(plan)
    pack = bytearray(missing_of(plan, planned, FILES))
    pack[-1] ^= 1
    ref = await peer.send(bytes(pack))
    with pytest.raises(AegisError) as refused:
        await peer.ask("source.push", plan_id=planned.plan_id, pack=ref)
    assert refused.value.code == "source.upload_incomplete"
    assert (await peer.plan(plan)).missing_count == 1
    await nothing_is_left(peer.agent)


async def cut_upload(agent: RunningAgent) -> tuple[SourcePlan, bytes]:
    """The line dies in the middle of an upload, with a.txt there and b.txt not; what was sent."""
    plan = plan_of(FILES)
    async with agent.peer() as peer:
        await peer.hello()
        planned = await peer.plan(plan)
        pack = missing_of(plan, planned, FILES)
        asking = asyncio.create_task(push_cut_short(agent, peer, planned, pack, sent=300_000))
        await until(lambda: part_bytes(agent) >= 250_000)
        await peer.link.close()
        await asyncio.wait([asking])
    return plan, pack


async def test_an_upload_that_is_cut_goes_on_where_it_was(
    agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, pack = await cut_upload(agent)
    async with agent.peer() as again:
        await again.hello()
        planned = await again.plan(plan)
        assert missing_of(plan, planned, FILES) == pack
        held, offsets = part_bytes(agent), list[int]()
        port = again.ports[ChannelName.SOURCE]
        send = port._channel.send

        async def noted(message: bytes | str) -> None:
            assert isinstance(message, bytes)
            offsets.append(decode_transfer_frame(message).offset)
            await send(message)

        monkeypatch.setattr(port._channel, "send", noted)
        # Was nothing kept, then all of it is asked for, and sent.
        sending = asyncio.create_task(port.send_file(1, pack, from_offset=held))
        ref = {"transfer": 1, "size_bytes": len(pack), "sha256": sha256(pack).hexdigest()}
        await again.ask("source.push", plan_id=planned.plan_id, pack=ref)
        await sending
        assert held >= 250_000 and min(offsets) == held
        assert (await again.plan(plan)).missing_count == 0
        await nothing_is_left(agent)


async def test_of_an_upload_that_is_cut_other_source_uses_the_files_that_are_whole(
    agent: RunningAgent,
) -> None:
    await cut_upload(agent)
    async with agent.peer() as again:
        await again.hello()
        changed = FILES | {"b.txt": os.urandom(1000)}
        assert (await again.plan(plan_of(changed))).missing_count == 2  # a.txt was whole
        await nothing_is_left(agent)
        await again.upload(changed)
        assert (await again.plan(plan_of(changed))).missing_count == 0


async def test_a_cut_upload_is_kept_for_a_time(
    agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_work, "KEPT_S", 0.1)
    plan, _ = await cut_upload(agent)
    await nothing_is_left(agent)
    async with agent.peer() as again:
        await again.hello()
        assert (await again.plan(plan)).missing_count == 2  # a.txt was whole


async def test_a_build_of_a_plan_that_is_not_all_here_is_refused(peer: Peer) -> None:
    planned = await peer.plan(plan_of(HELLO))
    with pytest.raises(AegisError) as refused:
        await peer.ask("build.start", plan_id=planned.plan_id, target="esp32p4")
    assert refused.value.code == "source.upload_incomplete"


async def test_a_build_for_another_target_than_granted_is_refused(peer: Peer) -> None:
    plan_id = await peer.upload(HELLO)
    with pytest.raises(AegisError) as refused:
        await peer.ask("build.start", plan_id=plan_id, target="esp32")
    assert refused.value.code == "target.not_allowed"


async def test_a_grant_without_a_target_is_for_no_build(agent: RunningAgent) -> None:
    """Or else a key that is limited to one chip would ask for no target, and build for all."""
    async with agent.peer(execution=Execution(timeout_secs=60)) as peer:
        await peer.hello()
        plan_id = await peer.upload(HELLO)
        with pytest.raises(AegisError) as refused:
            await peer.ask("build.start", plan_id=plan_id, target="esp32p4")
    assert refused.value.code == "target.not_allowed"


async def test_a_project_that_no_toolchain_knows_is_refused_at_once(peer: Peer) -> None:
    plan_id = await peer.upload({"readme.txt": b"no project"})
    with pytest.raises(AegisError) as refused:
        await peer.ask("build.start", plan_id=plan_id, target="esp32p4")
    assert refused.value.code == "project.not_platformio"
    assert (await peer.hello()).tasks == ()


async def test_a_build_is_told_from_its_start_to_its_artifacts(peer: Peer) -> None:
    task = await peer.built()
    assert [t.state for t in peer.changes(task.task_id)] == [TaskState.RUNNING, TaskState.SUCCEEDED]
    assert task.build is not None
    assert task.build.manifest is not None
    assert task.build.manifest.images[0].sha256 == sha256(b"image\n").hexdigest()
    facts = await peer.agent.control.heard(Facts)
    assert facts.facts["task_id"] == task.task_id
    assert "app.bin" in facts.facts["artifacts"]
    status = TaskInfo.model_validate(await peer.ask("build.status", task_id=task.task_id))
    assert status == task
    (told,) = (await peer.hello()).tasks
    assert (told.task_id, told.state, told.build) == (task.task_id, TaskState.SUCCEEDED, None)


async def test_what_was_built_while_control_was_away_is_claimed_when_it_is_back(
    peer: Peer,
) -> None:
    control = peer.agent.control
    await control.stop()
    task = await peer.built()
    assert control.all(Facts) == []
    await control.start()
    facts = await control.heard(Facts, within_s=60)
    assert facts.facts["task_id"] == task.task_id
    assert facts.signature is not None


async def test_two_builds_that_are_asked_for_at_once_are_one(peer: Peer) -> None:
    plan_id = await peer.upload(WAITS)
    both = await asyncio.gather(
        *(peer.ask("build.start", plan_id=plan_id, target="esp32p4") for _ in range(2)),
        return_exceptions=True,
    )
    refused = [answer for answer in both if isinstance(answer, AegisError)]
    assert [error.code for error in refused] == ["workspace.busy"]
    started = next(answer for answer in both if isinstance(answer, dict))
    await peer.ask("build.cancel", task_id=started["task_id"])


async def test_a_canceled_build_is_over_when_the_answer_comes(peer: Peer) -> None:
    started = await peer.build(WAITS)
    await until(build_processes, within_s=30)
    info = TaskInfo.model_validate(await peer.ask("build.cancel", task_id=started.task_id))
    assert info.state is TaskState.CANCELED
    assert not build_processes()
    again = await peer.ask("build.cancel", task_id=started.task_id)
    assert again["state"] == "canceled"


async def test_a_build_that_is_canceled_in_the_moment_it_starts_leaves_nothing(peer: Peer) -> None:
    plan_id = await peer.upload(WAITS)
    for _ in range(5):
        started = await peer.ask("build.start", plan_id=plan_id, target="esp32p4")
        info = await peer.ask("build.cancel", task_id=started["task_id"])
        assert info["state"] == "canceled"
    assert not build_processes()


async def test_a_task_of_another_kind_is_not_canceled(peer: Peer) -> None:
    started = await peer.build(WAITS)
    with pytest.raises(AegisError) as refused:
        await peer.ask("flash.cancel", task_id=started.task_id)
    assert refused.value.code == "task.not_found"
    await peer.ask("build.cancel", task_id=started.task_id)


async def test_the_end_of_the_job_tells_of_its_builds_before_it_closes(peer: Peer) -> None:
    started = await peer.build(WAITS)
    peer.agent.control.send(JobCancel(job_id=peer.job_id, reason="no more"))
    await peer.closing()
    methods = [method for method, _ in peer.told]
    last = peer.changes(started.task_id)[-1]
    assert last.state is TaskState.CANCELED
    assert last.error is not None
    assert last.error.code == "job.canceled"
    assert methods.index("session.closing") > max(
        n for n, method in enumerate(methods) if method == "task.changed"
    )
    assert not build_processes()


async def test_a_jobs_time_ends_its_build_and_says_that_it_was_the_time(
    agent: RunningAgent,
) -> None:
    async with agent.peer(execution=Execution(target="esp32p4", timeout_secs=2)) as peer:
        await peer.hello()
        started = await peer.build(WAITS)
        task = await peer.ended(started.task_id)
    assert task.error is not None
    assert task.error.code == "session.over"


async def test_a_build_that_is_being_prepared_while_the_job_ends_never_starts(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = peer.agent
    builder = agent.daemon._services.builder
    prepare, arrived, go = builder.prepare, asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> Any:
        build = await prepare(request)
        arrived.set()
        await go.wait()
        return build

    monkeypatch.setattr(builder, "prepare", slow)
    plan_id = await peer.upload(HELLO)
    starting = asyncio.create_task(peer.ask("build.start", plan_id=plan_id, target="esp32p4"))
    await arrived.wait()
    job = agent.daemon.jobs.get(peer.job_id)
    assert job is not None
    await peer.ask("job.end")
    go.set()
    with pytest.raises(AegisError):
        await starting
    await agent.moved(peer.job_id)
    await until(lambda: not list((agent.state / "jobs").iterdir()))
    assert job.tasks == {}


async def test_a_build_outlives_its_peer_and_the_next_one_reads_all_of_it(
    agent: RunningAgent, tmp: Path
) -> None:
    files = {"build.sh": b"echo one; while ! test -e go; do sleep 0.02; done; echo two\n"}
    async with agent.peer() as first:
        await first.hello()
        started = await first.build(files)
        async with first.view(ChannelName.PTY, started.stream) as screen:
            await screen.shows("one")
            offset = screen.viewer.offset
    async with agent.peer(first.job_id) as second:
        (task,) = (await second.hello()).tasks
        assert (task.task_id, task.stream) == (started.task_id, started.stream)
        (workspace,) = (agent.state / "source/workspaces").glob("**/project")
        (workspace / "go").touch()
        done = await second.ended(started.task_id)
        assert done.state in (TaskState.SUCCEEDED, TaskState.FAILED)  # no app.bin is a failure
        async with second.view(ChannelName.PTY, started.stream, offset) as rest:
            await rest.shows("two")
            assert b"one" not in rest.data
            await until(lambda: rest.over)
        async with second.view(ChannelName.PTY, started.stream) as whole:
            await until(lambda: whole.over)
            assert bytes(whole.data).startswith(b"one")


async def test_old_tasks_of_a_job_are_forgotten_and_their_output_with_them(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_agent.job._MOST_TASKS", 3)
    started = [await peer.built({"build.sh": b"exit 1\n"}) for _ in range(5)]
    assert [t.task_id for t in (await peer.hello()).tasks] == [t.task_id for t in started[-3:]]
    with pytest.raises(AegisError) as gone:
        await peer.ask("build.status", task_id=started[0].task_id)
    assert gone.value.code == "task.not_found"
    (folder,) = (peer.agent.state / "jobs").iterdir()
    await until(lambda: len(list(folder.iterdir())) == 3)


async def test_artifacts_are_their_builders_alone(agent: RunningAgent) -> None:
    async with agent.peer() as owner:
        await owner.hello()
        task = await owner.built()
    async with agent.peer(sub="key-2") as stranger:
        await stranger.hello()
        for method, params in (
            ("artifacts.list", {}),
            ("artifact.fetch", {"name": "app.bin", "transfer": 1}),
            ("logs.tail", {}),
            ("build.status", {}),
        ):
            with pytest.raises(AegisError) as absent:
                await stranger.ask(method, task_id=task.task_id, **params)
            assert absent.value.code == "task.not_found"
    async with agent.peer() as later:  # another job of the same identity
        await later.hello()
        listed = await later.ask("artifacts.list", task_id=task.task_id)
        assert "app.bin" in [artifact["name"] for artifact in listed["artifacts"]]


async def test_an_artifact_comes_whole_and_from_where_it_was_cut(peer: Peer, tmp: Path) -> None:
    data = os.urandom(300_000)
    task = await peer.built({"build.sh": b"cat data > app.bin\n", "data": data})
    port = peer.ports[ChannelName.FIRMWARE]
    (tmp / "app.bin.part").write_bytes(data[:200_000])
    for number, offset in ((1, 0), (2, 200_000)):
        path = tmp / ("whole.bin" if offset == 0 else "app.bin")
        receiving = asyncio.create_task(
            port.receive_to(number, path, size_bytes=len(data), sha256=sha256(data).hexdigest())
        )
        answer = await peer.ask(
            "artifact.fetch", task_id=task.task_id, name="app.bin", transfer=number, offset=offset
        )
        assert answer["transfer"]["sha256"] == sha256(data).hexdigest()
        await receiving
        assert path.read_bytes() == data


async def test_a_fetch_that_can_not_be_is_refused(peer: Peer) -> None:
    task = await peer.built()
    for name in ("../../agent.key", "result.json", "nothing.bin"):
        with pytest.raises(AegisError) as absent:
            await peer.ask("artifact.fetch", task_id=task.task_id, name=name, transfer=1)
        assert absent.value.code == "artifact.not_found"
    wish = {"task_id": task.task_id, "name": "app.bin", "transfer": 1, "offset": 99}
    with pytest.raises(AegisError) as beyond:
        await peer.ask("artifact.fetch", **wish)
    assert beyond.value.code == "transfer.size_mismatch"


async def test_a_transfer_number_that_is_in_use_is_said_at_once(peer: Peer) -> None:
    task = await peer.built({"build.sh": b"head -c 4000000 /dev/zero > app.bin\n"})
    wish = {"task_id": task.task_id, "name": "app.bin", "transfer": 5}
    await peer.ask("artifact.fetch", **wish)
    with pytest.raises(TransferRefused):
        await peer.ask("artifact.fetch", **wish)


# Logs.


async def tail(peer: Peer, task_id: str, **more: Any) -> LogsTailResult:
    return LogsTailResult.model_validate(await peer.ask("logs.tail", task_id=task_id, **more))


async def test_a_log_is_read_in_pieces_without_colours_while_and_after_it_is_written(
    peer: Peer,
) -> None:
    script = rb"printf '\033[1;31mred\033[0m\n\303\244\n'; cat >/dev/null" + b"\n"
    started = await peer.build({"build.sh": script})
    async with peer.view(ChannelName.PTY, started.stream) as screen:
        await screen.shows("red[^r]*ä")
    text, offset = "", 0
    while (piece := await tail(peer, started.task_id, offset=offset, max_bytes=9)).text:
        text, offset = text + piece.text, piece.next_offset
    assert text == "red\r\nä\r\n"
    assert (await tail(peer, started.task_id)).text == text
    beyond = await tail(peer, started.task_id, offset=1 << 62)
    assert (beyond.text, beyond.next_offset) == ("", beyond.total_bytes)
    await peer.ask("build.cancel", task_id=started.task_id)
    kept = await tail(peer, started.task_id, offset=0)
    assert kept.text.startswith(text)
    beyond = await tail(peer, started.task_id, offset=1 << 62)
    assert (beyond.text, beyond.next_offset) == ("", beyond.total_bytes)


async def test_a_log_of_bytes_that_are_no_text_still_fits_a_message(peer: Peer) -> None:
    task = await peer.built({"build.sh": b"head -c 60000 /dev/urandom | tr -d '\\n'; exit 1\n"})
    piece = await tail(peer, task.task_id, offset=0, max_bytes=32_768)
    assert 0 < piece.next_offset <= 32_768


async def test_diagnostics_in_another_script_fit_a_message(peer: Peer) -> None:
    line = "src/main.c:%d:1: error: " + "ошибка " * 150
    script = "".join(f"echo '{line % n}'\n" for n in range(1, 60)) + "exit 1\n"
    task = await peer.built({"build.sh": script.encode()})
    assert task.build is not None
    assert task.build.diagnostics


async def test_a_console_is_not_read_by_the_log_without_its_action(
    agent: RunningAgent, tmp: Path
) -> None:
    async with agent.peer() as owner, agent.peer(owner.job_id, actions=BUILDS_ONLY) as other:
        await owner.hello()
        await other.hello()
        job = agent.daemon.jobs.get(owner.job_id)
        assert job is not None
        spool = Spool(job.folder / "console")
        spool.append(b"password: ")
        task = job.new_task("monitor", spool=spool, board_id="bench-1")
        assert (await tail(owner, task.task_id)).text == "password: "
        with pytest.raises(AegisError) as refused:
            await tail(other, task.task_id)
        assert refused.value.code == "action.not_granted"


BUILDS_ONLY = (Action.BUILD_READ, Action.BUILD_RUN)


async def push_cut_short(
    agent: RunningAgent, peer: Peer, planned: SourcePlanResult, pack: bytes, *, sent: int
) -> None:
    """Ask for the push of `pack`, and send only the first `sent` bytes of it."""
    port = peer.ports[ChannelName.SOURCE]
    number = port.next_number()
    ref = {"transfer": number, "size_bytes": len(pack), "sha256": sha256(pack).hexdigest()}
    sending = asyncio.create_task(send_some(agent, port, number, pack[:sent]))
    try:
        await peer.ask("source.push", plan_id=planned.plan_id, pack=ref)
    except AegisError:
        pass
    finally:
        await sending


async def send_some(agent: RunningAgent, port: TransferPort, number: int, data: bytes) -> None:
    """As a sender does, after the receiver has asked: what comes earlier may be dropped."""
    await until(lambda: list((agent.state / "incoming").glob("*.part")))
    for offset in range(0, len(data), 16_384):
        frame = TransferData(number, offset, data[offset : offset + 16_384])
        assert decode_transfer_frame(frame.encode()) == frame
        await port._channel.send(frame.encode())


def part_bytes(agent: RunningAgent) -> int:
    parts = (agent.state / "incoming").glob("*.part")
    return sum(part.stat().st_size for part in parts)


async def nothing_is_left(agent: RunningAgent) -> None:
    await until(lambda: not list((agent.state / "incoming").iterdir()))


def build_processes() -> list[str]:
    """The processes of the users that builds of this run of the tests run as."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        uid = next(line for line in text.splitlines() if line.startswith("Uid:")).split()[1]
        if UID_BASE <= int(uid) < UID_BASE + USERS:
            found.append(text.splitlines()[0])
    return found
