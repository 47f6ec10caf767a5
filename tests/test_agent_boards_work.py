"""Flash and monitor as a peer asks for them: a session of the agent's own, over a real link."""

from __future__ import annotations

import asyncio
import gzip
import os
import pty
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aegis_agent.boards import BoardRegistry
from aegis_agent.build import Builder
from aegis_agent.build.bundle import write_bundle
from aegis_agent.config import AgentConfig, StaticBoard
from aegis_agent.cut_uploads import CutUploads
from aegis_agent.grants import GrantGate
from aegis_agent.identity import Identity
from aegis_agent.intake import Intake
from aegis_agent.jobs import Job, JobTable
from aegis_agent.ledger import Ledger
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.quarantine import Quarantine
from aegis_agent.results import ResultStore
from aegis_agent.sandbox import Sandbox
from aegis_agent.services import Services
from aegis_agent.sessions import SessionTable
from aegis_agent.source import SourceStore
from aegis_agent.toolchains import Toolchains
from aegis_agent.virtual_board.control_words import BoardState, FaultName
from aegis_agent.virtual_board.spawn import VirtualBoard, virtual_board
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_links.transfers import TransferPort
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import Facts, JobOffer, SignalAnswer, ToControl
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardNotGranted,
    ChipMismatch,
    ImageInvalid,
    NoResetLines,
)
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits, sign
from aegis_protocol.ids import new_id
from aegis_protocol.manifest import Manifest, ToolchainUsed
from aegis_protocol.rpc import TaskInfo
from aegis_protocol.states import JobState, TaskState
from board_stand import Firmware, blob, hello, job_of, running
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fixtures_platformio import platformio_home
from waiting import until

__all__ = ["hello", "platformio_home"]

IDENTITY = "alice"


@dataclass
class Rig:
    """A job of an agent with boards, and a peer that is connected to it."""

    job: Job
    jobs: JobTable
    results: ResultStore
    boards: BoardRegistry
    incoming: Path
    scratch: Path
    told: list[ToControl]
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rpc: RpcPeer = field(init=False)
    source: TransferPort = field(init=False)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.rpc.request(method, params, deadline_s=20)

    async def heard_of(self, method: str, params: dict[str, Any]) -> None:
        self.heard.append((method, params))

    def task(self, task_id: str) -> TaskInfo:
        """The task as the peer was told of it last."""
        for method, params in reversed(self.heard):
            if method == "task.changed" and params["task"]["task_id"] == task_id:
                return TaskInfo.model_validate(params["task"])
        raise AssertionError(f"nothing was said of {task_id}")

    async def ended(self, task_id: str) -> TaskInfo:
        def over() -> bool:
            return any(
                params["task"]["task_id"] == task_id and params["task"]["ended_at"]
                for method, params in self.heard
                if method == "task.changed"
            )

        await until(over, within_s=15)
        return self.task(task_id)

    def keep_result(self, firmware: Firmware, **changes: Any) -> str:
        """Put a finished build of IDENTITY into the store, as a build leaves it."""
        task_id = new_id()
        with self.results.draft(IDENTITY, task_id) as draft:
            for image, path in firmware.job.images:
                draft.write(image.path, "image", path.read_bytes())
            draft.write("manifest.json", "manifest", manifest_of(firmware, **changes).to_bytes())
            draft.commit()
        return task_id

    async def flash_bundle(self, archive: Path, **params: Any) -> dict[str, Any]:
        """`flash.start` with the bundle sent along."""
        data = archive.read_bytes()
        ref = {"transfer": 1, "size_bytes": len(data), "sha256": sha256(data).hexdigest()}
        sending = asyncio.create_task(self.source.send_file(1, data))
        try:
            return await self.ask("flash.start", bundle=ref, **params)
        finally:
            sending.cancel()
            await asyncio.wait([sending])


def manifest_of(firmware: Firmware, **changes: Any) -> Manifest:
    return Manifest(
        project="hello",
        target="esp32p4",
        images=tuple(image for image, _ in firmware.job.images),
        toolchain=ToolchainUsed(kind="platformio", version="6"),
        source_sha256="0" * 64,
        elf_sha256=firmware.elf_sha256,
    ).model_copy(update=changes)


@asynccontextmanager
async def rig_of(
    tmp: Path, *boards: StaticBoard, actions: tuple[Action, ...] = tuple(Action)
) -> AsyncIterator[Rig]:
    state = tmp / "state"
    for folder in (state, state / "incoming"):
        folder.mkdir()
    config = AgentConfig(state_dir=state, name="agent", boards=boards)
    identity = Identity.open(state)
    told: list[ToControl] = []
    background = OwnedTasks()

    def tell_control(frame: ToControl) -> bool:
        told.append(frame)
        return True

    registry = BoardRegistry(
        boards,
        discover=False,
        state_dir=state,
        on_change=lambda _: None,
        console_return_s=0.5,
    )
    sources = SourceStore(state / "source", quota_bytes=1 << 28)
    results = ResultStore(state / "results", quota_bytes=1 << 28)
    services = Services(
        config=config,
        identity=identity,
        sources=sources,
        results=results,
        builder=Builder(
            sources=sources,
            results=results,
            toolchains=await Toolchains.detect(platformio_home=state / "none"),
            sandbox=Sandbox(uid_base=config.build_uid_base),
            sign=identity.sign,
            silence_s=60,
        ),
        boards=registry,
        quarantine=Quarantine(state / "quarantine.json", Intake(lambda: None)),
        guide=IceGuide(),
        incoming=state / "incoming",
        cut_uploads=CutUploads(),
        background=background,
        tell_control=tell_control,
    )
    jobs = JobTable(
        slots=1,
        folder=state / "jobs",
        boards=registry,
        intake=Intake(lambda: None),
        linger_s=60,
        report=tell_control,
    )
    certificate, issuer = Certificate.generate(), Ed25519PrivateKey.generate()
    claims = claims_of(identity, certificate, {board.id: 1 for board in boards}, actions)
    with Ledger(state / "ledger.sqlite") as ledger:
        gate = GrantGate(
            ledger,
            agent_id=identity.agent_id,
            issuer_keys=lambda: {"k1": issuer.public_key()},
            skew_s=lambda: None,
        )
        try:
            async with (
                PeerLink.offering(certificate, channels=tuple(ChannelName)) as link,
                OwnedTasks() as owned,
            ):
                await SessionTable(gate, jobs, services, owned).offer(
                    JobOffer(
                        job_id=claims.job_id,
                        jti=claims.jti,
                        grant=sign(claims, issuer, "k1"),
                        sdp=link.offer_sdp,
                    )
                )
                (job,) = jobs.jobs
                rig = Rig(job, jobs, results, registry, state / "incoming", tmp, told)
                async with connected(link, rig):
                    yield rig
        finally:
            await jobs.close(JobState.CANCELED, None)
            await background.cancel()


@asynccontextmanager
async def connected(link: PeerLink, rig: Rig) -> AsyncIterator[None]:
    def answer() -> SignalAnswer | None:
        return next((frame for frame in rig.told if isinstance(frame, SignalAnswer)), None)

    sdp = (await until(answer)).sdp
    found = re.search(r"a=fingerprint:(sha-256 \S+)", sdp)
    assert found is not None
    await link.accept_answer(sdp, expected_fingerprint=Fingerprint.parse(found.group(1)))
    await link.opened(10)
    async with (
        RpcPeer.over(link.channel(ChannelName.ESPCTL), on_notification=rig.heard_of) as rpc,
        TransferPort.over(link.channel(ChannelName.SOURCE)) as source,
    ):
        rig.rpc, rig.source = rpc, source
        await rig.ask("session.hello", protocol=PROTOCOL_VERSION, client="test/1")
        yield


def claims_of(
    identity: Identity,
    certificate: Certificate,
    boards: dict[str, int],
    actions: tuple[Action, ...],
) -> GrantClaims:
    now = time.time()
    return GrantClaims(
        iss="control",
        sub=IDENTITY,
        aud=identity.agent_id,
        jti=new_id(),
        iat=now,
        nbf=now,
        exp=now + 30,
        job_id=new_id(),
        actions=actions,
        webrtc=WebRtcLimits(
            allowed_channels=tuple(ChannelName), peer_fingerprint=str(certificate.fingerprint)
        ),
        execution=Execution(boards=boards, timeout_secs=300),
    )


def bench(port: VirtualBoard | str, **more: str) -> StaticBoard:
    url = port if isinstance(port, str) else port.url
    return StaticBoard.model_validate({"id": "bench-1", "port": url, **more})


@pytest.fixture
async def board() -> AsyncIterator[VirtualBoard]:
    async with virtual_board(chip="esp32p4") as board:
        yield board


async def test_a_build_is_flashed_and_its_progress_and_its_result_are_told(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    async with rig_of(tmp, bench(board)) as rig:
        task_id = rig.keep_result(hello)
        started = await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
        task = await rig.ended(started["task_id"])
        assert task.state is TaskState.SUCCEEDED
        assert task.flash is not None
        assert task.flash.elf_sha256 == hello.elf_sha256
        wanted = [image.sha256 for image, _ in hello.job.images]
        assert [region.sha256 for region in task.flash.regions] == wanted
        progress = [params for method, params in rig.heard if method == "task.progress"]
        assert progress[-1]["done"] == progress[-1]["total"] > 0
        facts = next(frame for frame in rig.told if isinstance(frame, Facts))
        assert facts.facts["mac"] == board.mac
        (listed,) = (await rig.ask("boards.list"))["boards"]
        assert (listed["mac"], listed["chip"]) == (board.mac, "esp32p4")


async def test_a_bundle_is_flashed_and_nothing_of_it_stays(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    async with rig_of(tmp, bench(board)) as rig:
        (tmp / "manifest.json").write_bytes(manifest_of(hello).to_bytes())
        members = [tmp / "manifest.json", *(path for _, path in hello.job.images)]
        write_bundle(tmp / "b.tgz", members)
        started = await rig.flash_bundle(tmp / "b.tgz", board_id="bench-1")
        assert (await rig.ended(started["task_id"])).state is TaskState.SUCCEEDED
        assert list(rig.incoming.iterdir()) == list(rig.job.folder.iterdir()) == []


async def test_what_can_not_be_flashed_is_said_at_once_and_no_task_is_begun(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    async with rig_of(tmp, bench(board, chip="esp32p4")) as rig:
        before = await board.status()
        images = [image for image, _ in hello.job.images]
        same_place = (images[0], images[1].model_copy(update={"offset": images[0].offset}))
        for changes, wrong in (
            ({"target": "esp32c3"}, ChipMismatch),
            ({"images": ()}, ImageInvalid),
            ({"images": same_place}, ImageInvalid),
        ):
            with pytest.raises(wrong):
                task_id = rig.keep_result(hello, **changes)
                await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
        with pytest.raises(BoardNotGranted):
            await rig.ask("flash.start", board_id="bench-2", task_id=task_id)
        with pytest.raises(BadRequest):
            await rig.ask("flash.start", board_id="bench-1")
        (tmp / "b.tgz").write_bytes(gzip.compress(bytes(4096)))
        with pytest.raises(ImageInvalid):
            await rig.flash_bundle(tmp / "b.tgz", board_id="bench-1")
        assert list(rig.incoming.iterdir()) == list(rig.job.folder.iterdir()) == []
        assert rig.job.tasks == {}
        after = await board.status()
        # What it prints meanwhile, nobody takes.
        assert after.model_copy(update={"dropped_bytes": before.dropped_bytes}) == before


async def test_a_flash_that_fails_ends_its_task_with_the_reason(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    await board.set_fault(FaultName.BAD_MD5)
    async with rig_of(tmp, bench(board)) as rig:
        task_id = rig.keep_result(hello)
        started = await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
        task = await rig.ended(started["task_id"])
        assert task.state is TaskState.FAILED
        assert task.error is not None
        assert task.error.code == "flash.verify_failed"
        assert task.error.facts == {"flash": "unknown"}


async def test_a_flash_is_canceled_and_the_client_told_that_the_image_is_unknown(
    board: VirtualBoard, tmp: Path
) -> None:
    large = Firmware(job_of([blob(tmp, 6_000_000)]), "0" * 64)
    async with rig_of(tmp, bench(board)) as rig:
        task_id = rig.keep_result(large)
        started = await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
        await until(lambda: any(params.get("phase") == "write" for _, params in rig.heard))
        with pytest.raises(BoardBusy):
            await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
        canceled = TaskInfo.model_validate(
            await rig.ask("flash.cancel", task_id=started["task_id"])
        )
        assert canceled.state is TaskState.CANCELED
        assert canceled.error is not None
        assert canceled.error.code == "flash.canceled"
        await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


async def test_a_job_that_ends_takes_its_flash_and_its_console_along(
    hello: Firmware, tmp: Path
) -> None:
    async with running(hello, tmp) as board:
        async with rig_of(tmp, bench(board)) as rig:
            await rig.ask("monitor.open", board_id="bench-1")
            large = Firmware(job_of([blob(tmp, 6_000_000)]), "0" * 64)
            task_id = rig.keep_result(large)
            started = await rig.ask("flash.start", board_id="bench-1", task_id=task_id)
            await until(lambda: any(params.get("phase") == "write" for _, params in rig.heard))
            rig.job.end(JobState.CANCELED)
            await until(rig.jobs.idle, within_s=10)
            assert rig.job.task(started["task_id"]).state is TaskState.CANCELED
            with pytest.raises(BoardNotGranted):
                rig.boards.device("bench-1", rig.job.job_id)
            await board.until(lambda now: now.holder is None)


async def test_readers_of_one_board_share_one_console(hello: Firmware, tmp: Path) -> None:
    async with running(hello, tmp) as board, rig_of(tmp, bench(board)) as rig:
        opened = await asyncio.gather(
            rig.ask("monitor.open", board_id="bench-1"),
            rig.ask("monitor.open", board_id="bench-1"),
            rig.ask("monitor.open", board_id="bench-1", reset=True),
        )
        assert len({reply["task_id"] for reply in opened}) == 1
        assert len({reply["stream"] for reply in opened}) == 1
        assert all(reply["writer"] for reply in opened)
        task = rig.job.task(opened[0]["task_id"])
        assert task.spool is not None
        await board.until(lambda now: now.resets == 2)
        closed = TaskInfo.model_validate(await rig.ask("monitor.close", task_id=task.task_id))
        assert closed.ended_at is not None
        await board.until(lambda now: now.holder is None)
        again = await rig.ask("monitor.open", board_id="bench-1")
        assert again["task_id"] != task.task_id


async def test_a_console_that_can_not_be_reset_as_asked_is_not_left_open(tmp: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        async with rig_of(tmp, bench(os.ttyname(theirs))) as rig:
            with pytest.raises(NoResetLines):
                await rig.ask("monitor.open", board_id="bench-1", reset=True)
            assert all(task.over for task in rig.job.tasks.values())
            opened = await rig.ask("monitor.open", board_id="bench-1")
            with pytest.raises(NoResetLines):
                await rig.ask("monitor.open", board_id="bench-1", reset=True)
            assert not rig.job.task(opened["task_id"]).over, "its reader has done nothing wrong"
    finally:
        os.close(ours)
        os.close(theirs)


async def test_who_may_only_read_the_console_may_not_reset_the_board(tmp: Path) -> None:
    async with (
        virtual_board(chip="esp32p4") as board,
        rig_of(tmp, bench(board), actions=(Action.CONSOLE_READ,)) as rig,
    ):
        with pytest.raises(ActionNotGranted):
            await rig.ask("monitor.open", board_id="bench-1", reset=True)
        assert not rig.job.tasks
        opened = await rig.ask("monitor.open", board_id="bench-1")
        assert opened["writer"] is False


async def test_a_board_that_goes_for_good_ends_the_monitor_with_that_reason(
    hello: Firmware, tmp: Path
) -> None:
    async with running(hello, tmp) as board, rig_of(tmp, bench(board)) as rig:
        opened = await rig.ask("monitor.open", board_id="bench-1")
        await board.unplug()
        task = await rig.ended(opened["task_id"])
        assert task.state is TaskState.FAILED
        assert task.error is not None
        assert task.error.code == "board.gone"
