"""
One peer connection of a job, from the admitted offer to its close.

The answer is signed, the link opened, the granted channels served: requests on `espctl`
(`methods.py`), terminals on `pty`, consoles on `serial`, uploads on `source`, artifacts on
`firmware`. Closing a session ends no task: the job owns those.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

import structlog
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_links.streams import StreamPort
from aegis_links.transfers import TransferPort
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import JobAccepted, JobOffer, SignalAnswer, SignalCandidate
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import ChannelNotGranted, LinkFlooded
from aegis_protocol.model import Wire
from aegis_protocol.rpc import ChannelRejected, SessionClosing
from aegis_protocol.signing import b64, dtls_statement

from aegis_agent.grants import Admitted, GrantGate
from aegis_agent.jobs import Job
from aegis_agent.methods import Methods
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.services import Services
from aegis_agent.tasks import Task

log = structlog.get_logger()

_NOTICES: Final = 512
_GOODBYE_S: Final = 1.0


class PeerSession:
    """A connection with one grant. `run` lasts as long as it does."""

    def __init__(
        self, job: Job, admitted: Admitted, offer: JobOffer, gate: GrantGate, services: Services
    ) -> None:
        self.job = job
        self.claims = admitted.claims
        self.actions = frozenset(admitted.claims.actions)
        self.granted = frozenset(
            name for name in ChannelName if name in admitted.claims.webrtc.allowed_channels
        )
        self.services = services
        self.owned = OwnedTasks()
        self.source: TransferPort | None = None
        self.firmware: TransferPort | None = None
        self._fingerprint = admitted.peer_fingerprint
        self._offer = offer
        self._gate = gate
        self._link: PeerLink | None = None
        self._ports: dict[ChannelName, StreamPort] = {}
        self._notices: asyncio.Queue[tuple[str, Wire]] = asyncio.Queue(_NOTICES)
        self._closing = asyncio.Event()
        self._reason: AegisError | None = None
        self.log = log.bind(job_id=job.job_id, jti=self.claims.jti, identity=job.identity)

    async def run(self) -> None:
        """
        Serve the peer until either side closes or the job ends.

        Raises what kept the link from opening; once it is open, its end is an event in the log.
        """
        limits = self.claims.webrtc
        certificate = Certificate.generate()
        async with PeerLink.answering(
            self._offer.sdp,
            certificate,
            expected_fingerprint=self._fingerprint,
            granted=self.granted,
            ice_servers=self._offer.ice_servers,
            send_queue_bytes=self.services.config.send_queue_bytes,
            max_bandwidth_kbps=limits.max_bandwidth_kbps,
            max_message_rate=limits.max_message_rate,
            on_rejected=self._rejected,
        ) as link:
            self._link = link
            self._answer(link, certificate)
            await link.opened(deadline_s=self.services.config.connect_timeout_s)
            self.services.tell_control(
                JobAccepted(job_id=self.job.job_id, jti=self.claims.jti, ends_at=self.job.ends_at)
            )
            self.log.info("session.opened", path=link.path, channels=sorted(self.granted))
            await self._serve(link)
        ended = self._reason or link.error
        self.log.info(
            "session.closed",
            code=ended.code if ended else None,
            buffered_high_water=link.buffered_high_water,
        )

    def add_candidate(self, candidate: SignalCandidate) -> None:
        """A candidate that the peer trickled; a bad one is logged and dropped."""
        if self._link is None:
            return
        try:
            self._link.add_remote_candidate(
                candidate.candidate, candidate.sdpMid, candidate.sdpMLineIndex
            )
        except AegisError as exc:
            self.log.warning("candidate.refused", code=exc.code)

    def notify(self, method: str, params: Wire) -> None:
        """Queue a notification. Progress is dropped when the peer is slow; nothing else is."""
        try:
            self._notices.put_nowait((method, params))
        except asyncio.QueueFull:
            if method != "task.progress":
                self.close(LinkFlooded("the peer does not read what it is told"))

    def stream_added(self, task: Task) -> None:
        """Serve `task`'s stream to the peer, if the grant lets it see it."""
        channel = ChannelName.PTY if task.kind == "build" else ChannelName.SERIAL
        needed = Action.BUILD_READ if task.kind == "build" else Action.CONSOLE_READ
        port = self._ports.get(channel)
        if port is None or needed not in self.actions:
            return
        assert task.stream is not None
        assert task.spool is not None
        self.owned.start(
            port.serve(
                task.stream,
                task.spool,
                on_input=lambda data: self._type(task, data),
                on_resize=lambda cols, rows: self._resize(task, cols, rows),
            ),
            name=f"stream-{task.stream}",
        )

    def close(self, error: AegisError | None) -> None:
        """Ask for the end, with the reason that the peer is told."""
        if not self._closing.is_set():
            self._reason = error
            self._closing.set()

    def _answer(self, link: PeerLink, certificate: Certificate) -> None:
        agent = self.services.identity
        statement = dtls_statement(
            agent.agent_id,
            self.job.job_id,
            self.claims.jti,
            self._fingerprint.digest,
            certificate.fingerprint.digest,
        )
        answer = SignalAnswer(
            job_id=self.job.job_id,
            jti=self.claims.jti,
            sdp=link.answer_sdp,
            signature=b64(agent.sign(statement)),
        )
        self._gate.answered(self.claims, answer.model_dump_json())
        self.services.tell_control(answer)

    async def _serve(self, link: PeerLink) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.owned)
            if ChannelName.SOURCE in self.granted:
                port = TransferPort.over(link.channel(ChannelName.SOURCE))
                self.source = await stack.enter_async_context(port)
            if ChannelName.FIRMWARE in self.granted:
                port = TransferPort.over(link.channel(ChannelName.FIRMWARE))
                self.firmware = await stack.enter_async_context(port)
            for name in (ChannelName.PTY, ChannelName.SERIAL):
                if name in self.granted:
                    streams = StreamPort.over(link.channel(name))
                    self._ports[name] = await stack.enter_async_context(streams)
            for task in self.job.tasks.values():
                if task.spool is not None:
                    self.stream_added(task)
            if ChannelName.ESPCTL in self.granted:
                rpc = await stack.enter_async_context(
                    RpcPeer.over(link.channel(ChannelName.ESPCTL), handler=Methods(self))
                )
                self.owned.start(self._tell(rpc), name="notices")
            self.job.joined(self)
            try:
                await self._until_closed(link)
            finally:
                self.job.left(self)
                for task in self.job.tasks.values():
                    if task.writer is self:
                        task.writer = None

    async def _until_closed(self, link: PeerLink) -> None:
        gone = self.owned.start(link.wait_closed(), name="link-closed")
        asked = self.owned.start(self._closing.wait(), name="close-asked")
        await asyncio.wait([gone, asked], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            return
        reason = self._reason.body() if self._reason else None
        self.notify("session.closing", SessionClosing(error=reason))
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._notices.join()
        except TimeoutError:
            self.log.info("session.goodbye_unheard")

    async def _tell(self, rpc: RpcPeer) -> None:
        while True:
            method, params = await self._notices.get()
            try:
                await rpc.notify(method, params.model_dump(mode="json"))
            except AegisError:
                return  # the link is gone, which _until_closed sees
            finally:
                self._notices.task_done()

    async def _rejected(self, error: ChannelNotGranted) -> None:
        self.log.warning("channel.rejected", detail=error.message, code=error.code)
        self.notify("channel.rejected", ChannelRejected(error=error.body()))

    def _type(self, task: Task, data: bytes) -> None:
        needed = Action.BUILD_RUN if task.kind == "build" else Action.CONSOLE_WRITE
        if needed not in self.actions or task.type is None or task.over:
            return
        if task.writer is None:
            task.writer = self
        if task.writer is self:
            task.type(data)

    def _resize(self, task: Task, cols: int, rows: int) -> None:
        if task.writer is self and task.resize is not None and not task.over:
            task.resize(cols, rows)
