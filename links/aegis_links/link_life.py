"""
The life of a link: what keeps it, what ends it, and who is told.

Whatever goes wrong ends the link with one typed error, and every stream and request on it ends
with that same error. A link that either side closes on purpose ends without one. Nothing that its
user runs is canceled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import (
    ChannelNotGranted,
    LinkClosed,
    LinkError,
    LinkFlooded,
    LinkUnreachable,
    RelayUnavailable,
)
from aegis_protocol.fingerprint import Fingerprint
from aiortc import RTCDataChannel

from aegis_links.association import AssociationEars
from aegis_links.certificate import Certificate
from aegis_links.channel import Channel
from aegis_links.heartbeat import beat
from aegis_links.ice_servers import LiveServers
from aegis_links.pacing import Pacer
from aegis_links.rejecting import OnRejected, Rejecting
from aegis_links.send_scheduler import SendScheduler
from aegis_links.session_description import DtlsRole, RemoteDescription
from aegis_links.states import LINK_MOVES, LinkState
from aegis_links.stray_tasks import quiet
from aegis_links.tasks import TaskOwner
from aegis_links.transport import Transport
from aegis_links.uninterrupted import uninterrupted

FLUSH_LIMIT_S: Final = 1.0

_log = structlog.get_logger("aegis_links.link_life")


class LinkLife:
    def __init__(
        self,
        certificate: Certificate,
        servers: LiveServers,
        channels: Iterable[ChannelName],
        pacer: Pacer,
        *,
        offering: bool,
        relay_only: bool,
        send_queue_bytes: int,
        on_rejected: OnRejected | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        quiet(loop)
        self.state = LinkState.NEW
        self.error: AegisError | None = None
        self.offer_sdp = ""
        self.answer_sdp = ""
        self.remote_fingerprint: Fingerprint | None = None
        self._offering = offering
        self._candidates = 0
        self._settled = asyncio.Event()  # open or ended
        self._ended = asyncio.Event()
        self._delivered = asyncio.Event()  # set while nothing is queued or in flight
        self._finishing = asyncio.Lock()
        self._flush_limit_s = FLUSH_LIMIT_S
        self._tasks = TaskOwner()
        self._rejecting = Rejecting(self._tasks, on_rejected)
        self._transport = Transport(
            certificate,
            servers,
            AssociationEars(flushed=self._queue_moved, flooded=self._flooded),
            offering=offering,
            relay_only=relay_only,
            on_channel=self._peer_opened,
        )
        self._scheduler = SendScheduler(
            cap_bytes=send_queue_bytes,
            pacer=pacer,
            rtt_s=lambda: self._transport.association.shortest_rtt_s,
        )
        order = list(ChannelName)
        self._channels = {
            name: Channel(name, self._scheduler, self._end)
            for name in sorted(set(channels), key=order.index)
        }

    def channel(self, name: ChannelName) -> Channel:
        """Return a channel that was offered or granted. Raises ChannelNotGranted."""
        if name not in self._channels:
            raise ChannelNotGranted(f"Channel {name} is not granted.", channel=name)
        return self._channels[name]

    async def close(self, error: AegisError | None = None) -> None:
        """End the link; without an error, what was sent is waited for, a second at most."""
        self._end(error)
        await self._finish()

    async def wait_closed(self) -> AegisError | None:
        """Wait for the end; None where one of the peers closed the link on purpose."""
        await self._ended.wait()
        return self.error

    @property
    def rtt_s(self) -> float | None:
        return self._transport.association.rtt_s

    @property
    def buffered_high_water(self) -> int:
        """The most bytes that ever stood in the send queue: the sum of `bufferedAmount`."""
        return self._scheduler.high_water_bytes

    @property
    def relay_unavailable(self) -> RelayUnavailable | None:
        """Why there is no relayed address although a TURN server is configured."""
        return self._transport.relay_unavailable

    @property
    def path(self) -> str:
        """The kinds of address in use, ours and the peer's: `host/host`, `relay/srflx`."""
        return self._transport.path

    @property
    def way_found_s(self) -> float | None:
        """How long it took to find a way to the peer; the rest is proving who is there."""
        return self._transport.way_found_s

    @property
    def pair(self) -> tuple[str, str] | None:
        """The addresses in use, ours and the peer's, as `host:port`."""
        return self._transport.pair

    # From the first packet to the end.

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        try:
            await self._transport.gather()
            yield
        except BaseException:
            self._flush_limit_s = 0.0  # whoever leaves in haste does not wait for the peer
            raise
        finally:
            self._end(None)
            try:
                await self._finish()
            finally:
                await uninterrupted(self._tasks.cancel())

    async def _live(self, remote: RemoteDescription, role: DtlsRole) -> None:
        try:
            await self._transport.connect(remote, role)
            async with TaskOwner.around(self._open_when_ready(), "link opening"):
                await beat(self._transport, self._scheduler, self._ended)
                self._end(await self._transport.why_ended())
        except LinkUnreachable as exc:
            self._end(self._unopened(exc))
        except AegisError as exc:
            self._end(exc)
        except Exception:
            self._end(AegisError("A defect ended the connection."))
            raise

    def _unopened(self, error: LinkError) -> LinkError:
        """Return `error`, or what is wrong with the relay where that left no way to the peer."""
        relay = self._transport.relay_unavailable
        progress = self._transport.progress()
        if relay is None or progress["ice"] == "completed":
            return error
        return type(relay)(
            f"No direct way to the peer was found. {relay.message}",
            **{**relay.facts, "progress": progress},
        )

    async def _open_when_ready(self) -> None:
        awaited = self._channels if self._offering else {ChannelName.ESPCTL} & set(self._channels)
        for name in awaited:
            await self._channels[name].settled()
        if not self._ended.is_set():
            self._move(LinkState.OPEN)
            self._settled.set()

    def _end(self, error: AegisError | None) -> None:
        """The one way out: every effect of the end of a link stands here."""
        if self._ended.is_set():
            return
        self.error = error
        self._move(LinkState.CLOSED if error is None else LinkState.FAILED)
        refusal = error or LinkClosed("The connection is closed.")
        for channel in self._channels.values():
            channel.end(error, refusal)
        self._scheduler.end(refusal)
        self._ended.set()
        self._settled.set()

    async def _finish(self) -> None:
        async with self._finishing:
            connected = self._transport.association.established.is_set()
            try:
                if self.error is None and connected and not self._transport.ended.is_set():
                    self._queue_moved()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._flush_limit_s):
                            await self._delivered.wait()
            finally:
                await uninterrupted(self._transport.stop())

    def _move(self, to: LinkState) -> None:
        if to not in LINK_MOVES[self.state]:
            raise RuntimeError(f"a link can't move from {self.state} to {to}")
        _log.info(
            "link.moved",
            before=self.state,
            now=to,
            path=self.path,
            code=self.error.code if self.error else None,
        )
        self.state = to

    # What the transport tells; called from its receive path, so none of it may raise.

    def _queue_moved(self) -> None:
        self._scheduler.pump()
        if self._transport.association.delivered:
            self._delivered.set()
        else:
            self._delivered.clear()

    def _flooded(self, reason: str) -> None:
        self._end(LinkFlooded(reason))

    def _peer_opened(self, raw: RTCDataChannel) -> None:
        granted = {} if self._offering else {str(name): ch for name, ch in self._channels.items()}
        channel = granted.get(raw.label)
        lossy = raw.maxRetransmits is not None or raw.maxPacketLifeTime is not None
        if channel is not None and not (channel.attached or lossy) and raw.ordered:
            channel.attach(raw)
        elif not self._ended.is_set() and (flooded := self._rejecting.reject(raw)):
            self._end(flooded)
