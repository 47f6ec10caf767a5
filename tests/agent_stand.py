"""
A whole agent in this process, wired as `aegis-agent run` wires it, and peers that come to it.

    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        await peer.ask("job.end")

Its toolchain is a shell: `build.sh` of a project is run, in the real sandbox, and leaves `app.bin`.
A board is the other end of a pty. Everything else is the agent's own.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import termios
import tty
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis_agent.config import AgentConfig, StaticBoard
from aegis_agent.daemon import Daemon
from aegis_agent.identity import Identity
from aegis_agent.ledger import Ledger
from aegis_agent.sandbox import Mount
from aegis_agent.toolchains import BuildPlan, BuildWish, Toolchains
from aegis_agent.toolchains.kind import Described, DescribedImage, ReadFile
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_links.streams import StreamPort, StreamViewer
from aegis_links.transfers import TransferPort
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import JobMoved, JobRejected, SignalAnswer
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.fingerprint import check_sdp
from aegis_protocol.frames import StreamOutput
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.rpc import (
    BuildStartResult,
    SessionClosing,
    SessionHelloResult,
    SourcePlanResult,
    TaskChanged,
    TaskInfo,
)
from aegis_protocol.signing import dtls_statement, unb64, verified
from aegis_protocol.source import SourcePlan, unique_blobs, unpack_bitmap
from aegis_protocol.states import ended
from agent_control import ControlPlane
from build_stand import our_sandbox, plan_of
from waiting import until

ALL = tuple(ChannelName)
HELLO = {"build.sh": b"echo building; echo image > app.bin\n"}


class Shell:
    """A toolchain that runs the project's `build.sh`."""

    kind = "shell"
    kept: frozenset[str] = frozenset()

    def detect(self) -> Toolchain:
        return Toolchain(kind="shell", version="1", targets=("esp32", "esp32p4"))

    def recognizes(self, plan: SourcePlan) -> bool:
        return any(file.path == "build.sh" for file in plan.files)

    def plan(self, project: Path, wish: BuildWish) -> BuildPlan:
        return BuildPlan(
            kind="shell",
            version="1",
            platform="",
            environment=wish.environment or "default",
            command=("/bin/sh", "/project/build.sh"),
            env={"PATH": "/usr/bin:/bin"},
            mounts=(),
            shared={},
        )

    def prepare(self, scratch: Path) -> tuple[Mount, ...]:
        return ()

    def described(self, plan: BuildPlan, read: ReadFile) -> Described:
        return Described(images=(DescribedImage("app", "/project/app.bin", 0x10000),))


@dataclass
class PtyBoard:
    """A board that is the other end of a pty."""

    board: StaticBoard
    master: int

    def prints(self, data: bytes) -> None:
        os.write(self.master, data)

    async def typed(self, wanted: bytes) -> bytes:
        """Wait until `wanted` was typed, and return all that was."""
        heard = bytearray()

        def look() -> bytes | None:
            with suppress(BlockingIOError):
                heard.extend(os.read(self.master, 4096))
            return bytes(heard) if wanted in heard else None

        return await until(look)


@contextmanager
def pty_board(board_id: str = "bench-1", chip: str = "esp32p4") -> Iterator[PtyBoard]:
    master, slave = pty.openpty()
    tty.setraw(slave, termios.TCSANOW)
    os.set_blocking(master, False)
    try:
        yield PtyBoard(StaticBoard(id=board_id, port=os.ttyname(slave), chip=chip), master)
    finally:
        os.close(master)
        os.close(slave)


@dataclass
class RunningAgent:
    control: ControlPlane
    daemon: Daemon
    identity: Identity
    config: AgentConfig
    task: asyncio.Task[None]

    @property
    def id(self) -> str:
        return self.identity.agent_id

    @property
    def state(self) -> Path:
        return self.config.state_dir

    @asynccontextmanager
    async def peer(
        self,
        job_id: str | None = None,
        *,
        channels: Iterable[ChannelName] = ALL,
        **claims: Any,
    ) -> AsyncIterator[Peer]:
        """A client that offers with a grant as `claims` say, connected and with all its ports."""
        certificate = Certificate.generate()
        if job_id is not None:
            claims["job_id"] = job_id
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(
                PeerLink.offering(certificate, channels=channels)
            )
            granted = self.control.claims(self.id, str(certificate.fingerprint), **claims)
            self.control.offer(granted, link.offer_sdp)
            await self.answered(granted, link, certificate)
            peer = Peer(self, granted, link)
            await peer.open(stack, tuple(channels))
            yield peer

    async def answered(
        self, claims: GrantClaims, link: PeerLink, certificate: Certificate
    ) -> SignalAnswer:
        """Wait for the signed answer and connect. Raises what the agent rejects the offer with."""

        def look() -> SignalAnswer | JobRejected | None:
            for frame in self.control.frames:
                if isinstance(frame, SignalAnswer | JobRejected) and frame.jti == claims.jti:
                    return frame
            return None

        answer: SignalAnswer | JobRejected = await until(look, within_s=10)
        if isinstance(answer, JobRejected):
            raise from_body(answer.error)
        theirs = check_sdp(answer.sdp)
        statement = dtls_statement(
            self.id, claims.job_id, claims.jti, certificate.fingerprint.digest, theirs.digest
        )
        assert verified(self.identity.public_key, unb64(answer.signature), statement)
        await link.accept_answer(answer.sdp, expected_fingerprint=theirs)
        await link.opened(10)
        return answer

    async def moved(self, job_id: str, *, within_s: float = 10) -> JobMoved:
        """Wait for the end of the job, as control is told it."""
        return await self.control.heard(
            JobMoved, lambda m: m.job_id == job_id and ended(m.state), within_s=within_s
        )


@dataclass
class Peer:
    """A client by hand."""

    agent: RunningAgent
    claims: GrantClaims
    link: PeerLink
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rpc: RpcPeer = field(init=False)
    ports: dict[ChannelName, TransferPort] = field(default_factory=dict)
    streams: dict[ChannelName, StreamPort] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        return self.claims.job_id

    async def open(self, stack: AsyncExitStack, channels: tuple[ChannelName, ...]) -> None:
        for name in channels:
            channel = self.link.channel(name)
            match name:
                case ChannelName.ESPCTL:
                    self.rpc = await stack.enter_async_context(
                        RpcPeer.over(channel, on_notification=self._hear)
                    )
                case ChannelName.SOURCE | ChannelName.FIRMWARE:
                    port = await stack.enter_async_context(TransferPort.over(channel))
                    self.ports[name] = port
                case ChannelName.PTY | ChannelName.SERIAL:
                    streams = await stack.enter_async_context(StreamPort.over(channel))
                    self.streams[name] = streams

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.rpc.request(method, params, deadline_s=15)

    async def hello(self) -> SessionHelloResult:
        params = {"protocol": PROTOCOL_VERSION, "client": "test/1"}
        return SessionHelloResult.model_validate(await self.ask("session.hello", **params))

    async def send(self, data: bytes, **announced: Any) -> dict[str, Any]:
        """Start sending `data` on `source`; return how it is announced."""
        port = self.ports[ChannelName.SOURCE]
        number = port.next_number()
        self.sending = asyncio.create_task(_quiet(port.send_file(number, data)))
        digest = sha256(data).hexdigest()
        return {"transfer": number, "size_bytes": len(data), "sha256": digest} | announced

    async def plan(self, plan: SourcePlan) -> SourcePlanResult:
        ref = await self.send(plan.model_dump_json().encode())
        return SourcePlanResult.model_validate(await self.ask("source.plan", plan=ref))

    async def upload(self, files: Mapping[str, bytes], **changes: Any) -> str:
        """Plan and push a project; return the plan's id."""
        plan = plan_of(files, **changes)
        planned = await self.plan(plan)
        pack = missing_of(plan, planned, files)
        if pack:
            ref = await self.send(pack)
            await self.ask("source.push", plan_id=planned.plan_id, pack=ref, compression="none")
        return planned.plan_id

    async def build(self, files: Mapping[str, bytes] = HELLO, **more: Any) -> BuildStartResult:
        """Start to build `files`."""
        plan_id = await self.upload(files)
        params = {"plan_id": plan_id, "target": "esp32p4", **more}
        return BuildStartResult.model_validate(await self.ask("build.start", **params))

    async def built(self, files: Mapping[str, bytes] = HELLO) -> TaskInfo:
        return await self.ended((await self.build(files)).task_id)

    async def ended(self, task_id: str) -> TaskInfo:
        """Wait until the agent has told of the task's end."""

        def look() -> TaskInfo | None:
            return next((t for t in self.changes(task_id) if ended(t.state)), None)

        return await until(look, within_s=20)

    def changes(self, task_id: str) -> list[TaskInfo]:
        changed = [TaskChanged.model_validate(p).task for m, p in self.told if m == "task.changed"]
        return [task for task in changed if task.task_id == task_id]

    async def closing(self) -> AegisError | None:
        """Wait until the agent says that it closes, and return why."""

        def look() -> SessionClosing | None:
            said = [p for m, p in self.told if m == "session.closing"]
            return SessionClosing.model_validate(said[0]) if said else None

        said = await until(look, within_s=10)
        return from_body(said.error) if said.error else None

    @asynccontextmanager
    async def view(
        self, channel: ChannelName, stream: int, from_offset: int = 0
    ) -> AsyncIterator[Screen]:
        async with self.streams[channel].view(stream, from_offset=from_offset) as viewer:
            screen = Screen(viewer)
            reading = asyncio.create_task(_quiet(screen.read()))
            try:
                yield screen
            finally:
                reading.cancel()
                await asyncio.wait([reading])

    async def _hear(self, method: str, params: dict[str, Any]) -> None:
        self.told.append((method, params))


@dataclass
class Screen:
    """What a viewer has seen."""

    viewer: StreamViewer
    data: bytearray = field(default_factory=bytearray)
    over: bool = False

    async def read(self) -> None:
        async for event in self.viewer:
            if isinstance(event, StreamOutput):
                self.data += event.data
        self.over = True

    async def shows(self, pattern: str, *, within_s: float = 10) -> re.Match[bytes]:
        raw = pattern.encode()
        return await until(lambda: re.search(raw, bytes(self.data)), within_s=within_s)


@asynccontextmanager
async def an_agent(
    control: ControlPlane, folder: Path, *boards: PtyBoard, **settings: Any
) -> AsyncIterator[RunningAgent]:
    """An agent that is enrolled and linked up."""
    async with unlinked_agent(control, folder, *boards, **settings) as agent:
        await control.linked()
        yield agent


@asynccontextmanager
async def unlinked_agent(
    control: ControlPlane, folder: Path, *boards: PtyBoard, **settings: Any
) -> AsyncIterator[RunningAgent]:
    config = agent_config(control, folder, *boards, **settings)
    config.state_dir.mkdir(mode=0o700, exist_ok=True)
    identity = Identity.open(config.state_dir)
    shell = Shell()
    toolchains = Toolchains([(shell, shell.detect())])
    with Ledger(config.state_dir / "ledger.sqlite") as ledger:
        daemon = Daemon(config, toolchains, our_sandbox(), identity, ledger)
        task = asyncio.create_task(daemon.run(), name="daemon")
        try:
            yield RunningAgent(control, daemon, identity, config, task)
        finally:
            daemon.stop()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()


def agent_config(
    control: ControlPlane, folder: Path, *boards: PtyBoard, **settings: Any
) -> AgentConfig:
    given: dict[str, Any] = {
        "control_base_url": control.url,
        "state_dir": folder / "agent",
        "agent_auth_secret": "one-time-token",
        "name": "bench",
        "slots": 2,
        "discover_boards": False,
        "boards": tuple(one.board for one in boards),
    }
    return AgentConfig(**(given | settings))


def missing_of(plan: SourcePlan, planned: SourcePlanResult, files: Mapping[str, bytes]) -> bytes:
    """The pack that the agent asks for."""
    blobs = unique_blobs(plan.files)
    lacks = unpack_bitmap(unb64(planned.missing), len(blobs))
    return b"".join(files[blob.path] for blob, lack in zip(blobs, lacks, strict=True) if lack)


@dataclass(frozen=True)
class Offered:
    sdp: str
    fingerprint: str


async def an_offer() -> Offered:
    """An offer whose maker is gone: nobody will ever connect."""
    certificate = Certificate.generate()
    async with PeerLink.offering(certificate, channels=[ChannelName.ESPCTL]) as link:
        return Offered(link.offer_sdp, str(certificate.fingerprint))


async def rejection(agent: RunningAgent, **claims: Any) -> JobRejected:
    """Offer with a grant as `claims` say, which the agent is to refuse."""
    offered = await an_offer()
    granted = agent.control.claims(agent.id, offered.fingerprint, **claims)
    agent.control.offer(granted, offered.sdp)
    return await agent.control.heard(JobRejected, lambda r: r.jti == granted.jti)


async def _quiet(work: Any) -> None:
    with suppress(AegisError):
        await work
