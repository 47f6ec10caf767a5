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
from aegis_links.session_description import MAX_REMOTE_CANDIDATES
from aegis_links.streams import StreamPort
from aegis_links.transfers import TransferPort
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import JobAccepted, JobOffer, SignalAnswer, SignalCandidate
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import JobOver
from aegis_protocol.failures.link import ChannelNotGranted, LinkFlooded, MessageTooLarge
from aegis_protocol.model import Wire
from aegis_protocol.rpc import ChannelRejected, SessionClosing
from aegis_protocol.signing import b64, dtls_statement

from aegis_agent.grants import Admitted, GrantGate
from aegis_agent.job import Job
from aegis_agent.methods import Methods
from aegis_agent.owned_tasks import OwnedTasks, unless
from aegis_agent.rights import may_see, may_type, stream_channel, stream_needs
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
        self.answer: SignalAnswer | None = None
        self._fingerprint = admitted.peer_fingerprint
        self._offer = offer
        self._gate = gate
        self._link: PeerLink | None = None
        self._early_candidates: list[SignalCandidate] = []
        self._ports: dict[ChannelName, StreamPort] = {}
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._notices: asyncio.Queue[tuple[str, Wire]] = asyncio.Queue(_NOTICES)
        self._closing = asyncio.Event()
        self._reason: AegisError | None = None
        self.log = log.bind(job_id=job.job_id, jti=self.claims.jti, identity=job.identity)

    def is_for(self, offer: JobOffer) -> bool:
        """Tell whether `offer` is the one that this session answers; ICE servers may be newer."""
        return (offer.grant, offer.sdp) == (self._offer.grant, self._offer.sdp)

    async def run(self) -> AegisError | None:
        """
        Serve the peer until either side closes or the job ends; return why, if there is a why.

        Raises what kept the link from opening.
        """
        limits = self.claims.webrtc
        certificate = Certificate.generate()
        async with PeerLink.answering(
            self._offer.sdp,
            certificate,
            expected_fingerprint=self._fingerprint,
            granted=self.granted,
            ice_servers=self._offer.ice_servers,
            guide=self.services.guide,
            send_queue_bytes=self.services.config.send_queue_bytes,
            max_bandwidth_kbps=limits.max_bandwidth_kbps,
            max_message_rate=limits.max_message_rate,
            on_rejected=self._rejected,
        ) as link:
            await self._open(link, certificate)
            try:
                await self._serve(link)
            except AegisError as exc:
                self.close(exc)
        ended = self._reason or link.error
        self.log.info(
            "session.closed",
            code=ended.code if ended else None,
            buffered_high_water=link.buffered_high_water,
        )
        return ended

    @property
    def jti(self) -> str:
        return self.claims.jti

    def add_candidate(self, candidate: SignalCandidate) -> None:
        """A candidate that the peer trickled; a bad one is logged and dropped."""
        if self._link is None:
            if len(self._early_candidates) < MAX_REMOTE_CANDIDATES:
                self._early_candidates.append(candidate)
            return
        try:
            self._link.add_remote_candidate(
                candidate.candidate, candidate.sdpMid, candidate.sdpMLineIndex
            )
        except AegisError as exc:
            self.log.warning("candidate.refused", code=exc.code)

    def may_see(self, task: Task) -> bool:
        return may_see(task.kind, self.actions)

    def notify(self, method: str, params: Wire) -> None:
        """Queue a notification. Progress is dropped when the peer is slow; nothing else is."""
        try:
            self._notices.put_nowait((method, params))
        except asyncio.QueueFull:
            if method != "task.progress":
                self.close(LinkFlooded("the peer does not read what it is told"))

    def stream_added(self, task: Task) -> None:
        """Serve `task`'s stream to the peer, if the grant lets it see it."""
        port = self._ports.get(stream_channel(task.kind))
        if port is None or task.stream is None or task.stream in self._streams:
            return
        if stream_needs(task.kind) in self.actions:
            self._streams[task.stream] = self.owned.start(
                self._stream(port, task), name=f"stream-{task.stream}"
            )

    def stream_removed(self, task: Task) -> None:
        serving = self._streams.get(task.stream or 0)
        if serving is not None:
            serving.cancel()

    def close(self, error: AegisError | None) -> None:
        """Ask for the end, with the reason that the peer is told."""
        if not self._closing.is_set():
            self._reason = error
            self._closing.set()

    async def _open(self, link: PeerLink, certificate: Certificate) -> None:
        self._link = link
        for candidate in self._early_candidates:
            self.add_candidate(candidate)
        self._check_wanted()
        await self._send_answer(link, certificate)
        await unless(self._closing, link.opened(self.services.config.connect_timeout_s))
        self._check_wanted()
        self.job.joined()
        self.services.tell_control(
            JobAccepted(job_id=self.job.job_id, jti=self.claims.jti, ends_at=self.job.ends_at)
        )
        self.log.info("session.opened", path=link.path, channels=sorted(map(str, self.granted)))

    def _check_wanted(self) -> None:
        """Raise why the connection is not to be opened any more, if it is not."""
        if self._closing.is_set():
            raise self._reason or JobOver("the job ended before the connection was open")

    async def _send_answer(self, link: PeerLink, certificate: Certificate) -> None:
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
        await asyncio.to_thread(self._gate.answered, self.claims, answer.model_dump_json())
        self.answer = answer
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
                self.stream_added(task)
            if ChannelName.ESPCTL in self.granted:
                rpc = await stack.enter_async_context(
                    RpcPeer.over(link.channel(ChannelName.ESPCTL), handler=Methods(self))
                )
                self.owned.start(self._tell(rpc), name="notices")
            # Here, and not once all is torn down: what is torn down types no more.
            stack.callback(self.job.left, self)
            await self._until_closed(link)

    async def _until_closed(self, link: PeerLink) -> None:
        if await unless(self._closing, _closed(link)):
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
            except MessageTooLarge as exc:
                self.log.warning("notice.too_large", method=method, **exc.facts)
            except AegisError:
                return  # the link is gone, which _until_closed sees
            finally:
                self._notices.task_done()

    async def _stream(self, port: StreamPort, task: Task) -> None:
        assert task.stream is not None
        assert task.spool is not None
        try:
            await port.serve(
                task.stream,
                task.spool,
                on_input=lambda data: self._type(task, data),
                on_resize=lambda cols, rows: self._resize(task, cols, rows),
            )
        except OSError as exc:
            self.log.warning("stream.not_read", stream=task.stream, detail=str(exc))
        finally:
            del self._streams[task.stream]

    async def _rejected(self, error: ChannelNotGranted) -> None:
        self.log.warning("channel.rejected", detail=error.message, code=error.code)
        self.notify("channel.rejected", ChannelRejected(error=error.body()))

    def _type(self, task: Task, data: bytes) -> None:
        if task.type is not None and self._is_writer(task):
            task.type(data)

    def _resize(self, task: Task, cols: int, rows: int) -> None:
        if task.resize is not None and self._is_writer(task):
            task.resize(cols, rows)

    def _is_writer(self, task: Task) -> bool:
        """Whether this peer types; where nobody does, the first who may and tries does."""
        if task.over or not may_type(task.kind, self.actions):
            return False
        if task.writer is None:
            task.writer = self
        return task.writer is self


async def _closed(link: PeerLink) -> bool:
    await link.wait_closed()
    return True
