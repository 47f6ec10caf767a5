"""
An agent for the client's tests: a real peer link that serves the protocol's methods with little
behind them. It keeps what was sent to it and builds by writing a script of output.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_links.spool import Spool
from aegis_links.streams import StreamPort
from aegis_links.transfers import TransferPort
from aegis_protocol.actions import Action
from aegis_protocol.board import Board
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import MethodUnknown
from aegis_protocol.failures.link import PeerGone
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.ids import new_id, public_id
from aegis_protocol.manifest import Artifact, Diagnostic, FlashImage, Manifest, ToolchainUsed
from aegis_protocol.rpc import (
    BuildResult,
    BuildStartParams,
    FlashResult,
    FlashStartParams,
    LinkMeasureParams,
    MonitorOpenParams,
    SessionHelloResult,
    SessionLimits,
    SourcePlanParams,
    SourcePushParams,
    TaskInfo,
    TransferRef,
)
from aegis_protocol.signing import b64, dtls_statement, manifest_statement, public_bytes
from aegis_protocol.source import SourcePlan, pack_bitmap, plan_digest, unique_blobs
from aegis_protocol.states import TaskState
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

APP = b"\xe9app image\n" * 500
ELF_SHA256 = sha256(b"the elf").hexdigest()


@dataclass
class Script:
    """How the next builds and consoles go."""

    output: tuple[bytes, ...] = (b"Compiling\r\n", b"\x1b[1;31mred\x1b[0m\r\n")
    error: AegisError | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    hold: bool = False
    """The build ends only when it is canceled, or when `release` is set."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    deaf: bool = False
    """Nothing that is asked is answered any more, once a build runs."""
    console: tuple[bytes, ...] = (b"boot\r\n",)
    flash_error: AegisError | None = None
    app: bytes = APP
    takes_no_source: bool = False
    """An upload is never finished."""
    lost_answers: set[str] = field(default_factory=set)
    """Methods that are served, once, while the link is cut before the answer."""


class FakeAgent:
    """Answers the offers of one control. `run_links` must be entered for it to do so."""

    def __init__(self, name: str = "bench", boards: tuple[Board, ...] = ()) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()
        self.boards = boards
        self.script = Script()
        self.blobs: dict[str, bytes] = {}
        self.plans: dict[str, SourcePlan] = {}
        self.calls: list[str] = []
        self.builds: list[BuildStartParams] = []
        self.flashes: list[FlashStartParams] = []
        self.bundles: list[bytes] = []
        self.sizes: list[tuple[int, int]] = []
        self.typed = bytearray()
        self.canceled: list[str] = []
        self.ended_jobs: list[str] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.tasks: dict[str, dict[str, TaskInfo]] = {}
        self.hello_error: AegisError | None = None
        self.source_bytes = 0
        self.sessions: list[_Session] = []
        self.unknown_methods: set[str] = set()
        self.measured: list[tuple[int, int]] = []
        self.fetched: list[tuple[str, int]] = []
        """Name and offset of each artifact that was asked for."""
        self.spools: dict[str, Spool] = {}
        self._spools: Path | None = None
        self._living: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> str:
        return public_id(public_bytes(self.key))

    @property
    def key_text(self) -> str:
        return b64(public_bytes(self.key))

    async def answer(
        self,
        job_id: str,
        jti: str,
        sdp: str,
        fingerprint: str,
        channels: tuple[str, ...],
        actions: tuple[Action, ...],
    ) -> tuple[str, str]:
        """Return the answer's SDP and the signature of it; the link lives on in a task."""
        session = _Session(self, job_id, channels, actions)
        answered: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self.start(session.live(jti, sdp, fingerprint, answered))
        return await answered

    async def cut(self) -> None:
        """Break the newest link in the middle of whatever it carries."""
        link = self.sessions[-1].link
        assert link is not None
        await link.close(PeerGone("the network is gone"))

    async def close(self) -> None:
        for task in list(self._living):
            task.cancel()
        await asyncio.gather(*self._living, return_exceptions=True)
        for spool in self.spools.values():
            spool.close()
        if self._spools is not None:
            shutil.rmtree(self._spools)

    def spool(self, task_id: str) -> Spool:
        if self._spools is None:
            self._spools = Path(tempfile.mkdtemp(prefix="fake-agent-"))
        self.spools[task_id] = Spool(self._spools / task_id)
        return self.spools[task_id]

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that outlives connections."""
        task = asyncio.create_task(work)
        self._living.add(task)
        task.add_done_callback(self._living.discard)

    async def changed(self, job_id: str, task: TaskInfo) -> None:
        self.tasks[job_id][task.task_id] = task
        for session in self.sessions:
            if session.job_id == job_id and session.rpc is not None and not session.rpc.closed:
                await session.notify("task.changed", {"task": task.model_dump(mode="json")})


class _Session:
    def __init__(
        self, agent: FakeAgent, job_id: str, channels: tuple[str, ...], actions: tuple[Action, ...]
    ) -> None:
        self.agent, self.job_id, self.actions = agent, job_id, actions
        self.granted = frozenset(ChannelName(name) for name in channels)
        self.tasks = agent.tasks.setdefault(job_id, {})
        self.rpc: RpcPeer | None = None
        self.link: PeerLink | None = None
        self.transfers: dict[ChannelName, TransferPort] = {}
        self.streams: dict[ChannelName, StreamPort] = {}
        self.working: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        agent.sessions.append(self)

    async def live(
        self,
        jti: str,
        sdp: str,
        fingerprint: str,
        answered: asyncio.Future[tuple[str, str]],
    ) -> None:
        certificate = Certificate.generate()
        theirs = Fingerprint.parse(fingerprint)
        async with AsyncExitStack() as stack:
            self.link = link = await stack.enter_async_context(
                PeerLink.answering(
                    sdp, certificate, expected_fingerprint=theirs, granted=self.granted
                )
            )
            statement = dtls_statement(
                self.agent.id, self.job_id, jti, theirs.digest, certificate.fingerprint.digest
            )
            answered.set_result((link.answer_sdp, b64(self.agent.key.sign(statement))))
            try:
                await link.opened(10)
            except AegisError:
                return
            for name in self.granted & {ChannelName.SOURCE, ChannelName.FIRMWARE}:
                port = TransferPort.over(link.channel(name))
                self.transfers[name] = await stack.enter_async_context(port)
            for name in self.granted & {ChannelName.PTY, ChannelName.SERIAL}:
                streams = StreamPort.over(link.channel(name))
                self.streams[name] = await stack.enter_async_context(streams)
            self.rpc = await stack.enter_async_context(
                RpcPeer.over(link.channel(ChannelName.ESPCTL), handler=self.handle)
            )
            for task in self.tasks.values():
                if task.stream is not None:
                    channel = ChannelName.PTY if task.kind == "build" else ChannelName.SERIAL
                    self._serve(channel, task, self.agent.spools[task.task_id])
            closing = asyncio.create_task(self.closing.wait())
            gone = asyncio.create_task(link.wait_closed())
            try:
                await asyncio.wait([closing, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for work in (closing, gone, *self.working):
                    work.cancel()
                await asyncio.gather(closing, gone, *self.working, return_exceptions=True)

    def start(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self.working.add(task)
        task.add_done_callback(self.working.discard)

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        assert self.rpc is not None
        await self.rpc.notify(method, params)

    async def changed(self, task: TaskInfo) -> None:
        await self.agent.changed(self.job_id, task)

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.agent.calls.append(method)
        if self.agent.script.deaf and self.agent.builds and method != "build.start":
            await asyncio.Event().wait()
        name = method.replace(".", "_")
        serve: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] | None
        serve = getattr(self, f"_on_{name}", None)
        if serve is None or method in self.agent.unknown_methods:
            raise MethodUnknown(f"there is no method {method}")
        answer: dict[str, Any] = await serve(params)
        if method in self.agent.script.lost_answers:
            self.agent.script.lost_answers.remove(method)
            await self.agent.cut()
        return answer

    async def _on_session_hello(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.agent.hello_error is not None:
            raise self.agent.hello_error
        return SessionHelloResult(
            protocol=1,
            agent_id=self.agent.id,
            agent_name=self.agent.name,
            version="0",
            job_id=self.job_id,
            ends_at=0,
            channels=tuple(str(name) for name in self.granted),
            actions=(),
            compressions=("none", "deflate"),
            limits=SessionLimits(
                send_queue_bytes=131_072,
                max_message_bytes=65_536,
                max_file_bytes=1 << 28,
                max_source_bytes=1 << 31,
            ),
            tasks=tuple(t.model_copy(update={"build": None}) for t in self.tasks.values()),
        ).model_dump(mode="json")

    async def _on_source_plan(self, params: dict[str, Any]) -> dict[str, Any]:
        data = await self._received(SourcePlanParams.model_validate(params).plan)
        plan = SourcePlan.model_validate_json(data)
        plan_id = new_id()
        self.agent.plans[plan_id] = plan
        blobs = unique_blobs(plan.files)
        missing = [blob.sha256 not in self.agent.blobs for blob in blobs]
        return {
            "plan_id": plan_id,
            "missing": b64(pack_bitmap(missing)),
            "missing_bytes": sum(b.size_bytes for b, m in zip(blobs, missing, strict=True) if m),
            "missing_count": sum(missing),
        }

    async def _on_source_push(self, params: dict[str, Any]) -> dict[str, Any]:
        wish = SourcePushParams.model_validate(params)
        if self.agent.script.takes_no_source:
            await asyncio.Event().wait()
        data = await self._received(wish.pack)
        if wish.compression == "deflate":
            data = zlib.decompress(data)
        plan = self.agent.plans[wish.plan_id]
        for blob in unique_blobs(plan.files):
            if blob.sha256 not in self.agent.blobs:
                content, data = data[: blob.size_bytes], data[blob.size_bytes :]
                assert sha256(content).hexdigest() == blob.sha256
                self.agent.blobs[blob.sha256] = content
        assert data == b""
        return {"plan_id": wish.plan_id, "source_sha256": plan_digest(plan)}

    async def _received(self, ref: TransferRef) -> bytes:
        data = await self.transfers[ChannelName.SOURCE].receive_bytes(
            ref.transfer, size_bytes=ref.size_bytes, sha256=ref.sha256
        )
        self.agent.source_bytes += len(data)
        return data

    async def _on_build_start(self, params: dict[str, Any]) -> dict[str, Any]:
        wish = BuildStartParams.model_validate(params)
        self.agent.builds.append(wish)
        task = TaskInfo(
            task_id=new_id(), kind="build", state=TaskState.RUNNING, stream=self._stream()
        )
        self.tasks[task.task_id] = task
        spool = self.agent.spool(task.task_id)
        self._serve(ChannelName.PTY, task, spool)
        self.agent.start(self._build(task, wish, spool))
        return {
            "task_id": task.task_id,
            "stream": task.stream,
            "toolchain": "platformio",
            "environment": wish.environment or wish.target,
        }

    def _stream(self) -> int:
        return len(self.tasks) + 1

    def _serve(self, channel: ChannelName, task: TaskInfo, spool: Spool) -> None:
        assert task.stream is not None
        if channel not in self.streams:
            return
        self.start(
            self.streams[channel].serve(
                task.stream,
                spool,
                on_input=self.agent.typed.extend,
                on_resize=lambda cols, rows: self.agent.sizes.append((cols, rows)),
            )
        )

    async def _build(self, task: TaskInfo, wish: BuildStartParams, spool: Spool) -> None:
        script = self.agent.script
        with suppress(AegisError):  # the build goes on without a peer
            await self.notify(
                "task.progress",
                {"task_id": task.task_id, "phase": "compile", "done": 1, "total": 2},
            )
        for piece in script.output:
            spool.append(piece)
        if script.hold:
            await script.release.wait()
        if task.task_id in self.agent.canceled:
            return
        spool.finish()
        state = TaskState.FAILED if script.error else TaskState.SUCCEEDED
        files = {} if script.error else self._firmware(wish)
        self.agent.files[task.task_id] = files
        result = BuildResult(
            manifest=Manifest.model_validate_json(files["manifest.json"]) if files else None,
            artifacts=_artifacts(files),
            diagnostics=script.diagnostics,
            duration_s=0.5,
        )
        error = script.error.body() if script.error else None
        await self.changed(
            task.model_copy(update={"state": state, "build": result, "error": error})
        )

    def _firmware(self, wish: BuildStartParams) -> dict[str, bytes]:
        app = self.agent.script.app
        manifest = Manifest(
            project="hello",
            environment=wish.environment or wish.target,
            target=wish.target,
            images=(
                FlashImage(
                    name="app",
                    path="firmware.bin",
                    offset=0x10000,
                    size_bytes=len(app),
                    sha256=sha256(app).hexdigest(),
                ),
            ),
            toolchain=ToolchainUsed(kind="platformio", version="6.1"),
            source_sha256="0" * 64,
            elf_sha256=ELF_SHA256,
        ).to_bytes()
        signature = self.agent.key.sign(manifest_statement(manifest))
        return {
            "firmware.bin": app,
            "manifest.json": manifest,
            "manifest.sig": b64(signature).encode(),
            "build.log": b"Compiling\n",
        }

    async def _on_build_cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        task = self.tasks[params["task_id"]]
        self.agent.canceled.append(task.task_id)
        ended = task.model_copy(update={"state": TaskState.CANCELED})
        await self.changed(ended)
        return ended.model_dump(mode="json")

    async def _on_build_status(self, params: dict[str, Any]) -> dict[str, Any]:
        return self.tasks[params["task_id"]].model_dump(mode="json")

    async def _on_artifacts_list(self, params: dict[str, Any]) -> dict[str, Any]:
        files = self.agent.files[params["task_id"]]
        rows = [artifact.model_dump(mode="json") for artifact in _artifacts(files)]
        return {"task_id": params["task_id"], "artifacts": rows}

    async def _on_artifact_fetch(self, params: dict[str, Any]) -> dict[str, Any]:
        data = self.agent.files[params["task_id"]][params["name"]]
        number = params["transfer"]
        self.agent.fetched.append((params["name"], params["offset"]))

        async def send() -> None:
            port = self.transfers[ChannelName.FIRMWARE]
            await port.send_file(number, data, from_offset=params["offset"])

        self.start(send())
        digest = sha256(data).hexdigest()
        return {"transfer": {"transfer": number, "size_bytes": len(data), "sha256": digest}}

    async def _on_boards_list(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"boards": [board.model_dump(mode="json") for board in self.agent.boards]}

    async def _on_link_measure(self, params: dict[str, Any]) -> dict[str, Any]:
        wish = LinkMeasureParams.model_validate(params)
        self.agent.measured.append((len(wish.data), wish.reply_bytes))
        return {"data": "0" * wish.reply_bytes}

    async def _on_flash_start(self, params: dict[str, Any]) -> dict[str, Any]:
        wish = FlashStartParams.model_validate(params)
        self.agent.flashes.append(wish)
        if wish.bundle is not None:
            self.agent.bundles.append(await self._received(wish.bundle))
        task = TaskInfo(task_id=new_id(), kind="flash", state=TaskState.RUNNING)
        self.tasks[task.task_id] = task

        async def flash() -> None:
            script = self.agent.script
            if script.flash_error is not None:
                update: dict[str, Any] = {
                    "state": TaskState.FAILED,
                    "error": script.flash_error.body(),
                }
            else:
                result = FlashResult(
                    board_id=wish.board_id, chip="ESP32-P4", elf_sha256=ELF_SHA256, duration_s=1
                )
                update = {"state": TaskState.SUCCEEDED, "flash": result}
            await self.changed(task.model_copy(update=update))

        self.agent.start(flash())
        return {"task_id": task.task_id}

    async def _on_monitor_open(self, params: dict[str, Any]) -> dict[str, Any]:
        wish = MonitorOpenParams.model_validate(params)
        task = TaskInfo(
            task_id=new_id(), kind="monitor", state=TaskState.RUNNING, stream=self._stream()
        )
        self.tasks[task.task_id] = task
        spool = self.agent.spool(task.task_id)
        self._serve(ChannelName.SERIAL, task, spool)
        for piece in self.agent.script.console:
            spool.append(piece)
        return {
            "task_id": task.task_id,
            "stream": task.stream,
            "offset": 0,
            "writer": wish.write and Action.CONSOLE_WRITE in self.actions,
        }

    async def _on_monitor_close(self, params: dict[str, Any]) -> dict[str, Any]:
        return self.tasks[params["task_id"]].model_dump(mode="json")

    async def _on_job_end(self, params: dict[str, Any]) -> dict[str, Any]:
        self.agent.ended_jobs.append(self.job_id)
        return {}


def _artifacts(files: dict[str, bytes]) -> tuple[Artifact, ...]:
    return tuple(
        Artifact(name=name, kind="other", size_bytes=len(data), sha256=sha256(data).hexdigest())
        for name, data in files.items()
    )
