"""
A link to one peer: from the certificate to the last message, with states, errors and deadlines.

The client offers and creates the channels, the agent answers. Whatever goes wrong ends the link
with one typed error, and every stream and request on it ends with that same error. A link that
either side closes on purpose ends without one. Nothing that its user runs is canceled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import structlog
from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES, STREAM_IDS, ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import (
    ChannelNotGranted,
    LinkClosed,
    LinkError,
    LinkFlooded,
    LinkNotOpened,
    LinkUnreachable,
    PeerGone,
    RelayUnavailable,
    SdpInvalid,
    TooManyCandidates,
)
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.http_api import IceServer
from aiortc import RTCDataChannel

from aegis_links.association import AssociationEars
from aegis_links.certificate import Certificate
from aegis_links.channel import Channel
from aegis_links.ice_guide import IceGuide
from aegis_links.ice_servers import LiveServers, find_live
from aegis_links.liveness import PING_AFTER_S, TICK_S, Liveness
from aegis_links.pacing import Pacer
from aegis_links.send_scheduler import SendScheduler
from aegis_links.session_description import (
    MAX_REMOTE_CANDIDATES,
    DtlsRole,
    RemoteDescription,
    read_candidate,
    read_description,
)
from aegis_links.states import LINK_MOVES, LinkState
from aegis_links.stray_tasks import quiet
from aegis_links.tasks import TaskOwner
from aegis_links.transport import Transport

MAX_REJECTED_CHANNELS: Final = 16
FLUSH_LIMIT_S: Final = 1.0
PING: Final = '{"jsonrpc":"2.0","method":"ping"}'

_SHOWN_LABEL_CHARS: Final = 40
_log = structlog.get_logger("aegis_links.peer_link")

OnRejected = Callable[[ChannelNotGranted], Awaitable[None]]


class PeerLink:
    """Made by `offering` and `answering`, which open it and close it."""

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
        self._clock = loop.time
        self._offering = offering
        self._on_rejected = on_rejected
        self._rejected = 0
        self._candidates = 0
        self._settled = asyncio.Event()  # open or ended
        self._ended = asyncio.Event()
        self._delivered = asyncio.Event()  # set while nothing is queued or in flight
        self._finishing = asyncio.Lock()
        self._flush_limit_s = FLUSH_LIMIT_S
        self._tasks = TaskOwner()
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

    @classmethod
    @asynccontextmanager
    async def offering(
        cls,
        certificate: Certificate,
        *,
        channels: Iterable[ChannelName],
        ice_servers: Sequence[IceServer] = (),
        guide: IceGuide | None = None,
        relay_only: bool = False,
        send_queue_bytes: int = SEND_QUEUE_CAP_BYTES,
        max_bandwidth_kbps: int = 0,
        max_message_rate: int = 0,
    ) -> AsyncIterator[PeerLink]:
        """
        A link whose `offer_sdp` is ready. Give it the answer with `accept_answer`.

        guide        what is known of the servers; without it they are asked, which may take time
        relay_only   use none but relayed addresses, and show no other; a guide may say so too
        max_bandwidth_kbps, max_message_rate   slow what this side sends; 0 is no limit

        Raises NoCandidates, RelayUnavailable (with relay_only).
        """
        link = cls(
            certificate,
            await _live_servers(ice_servers, guide),
            channels,
            Pacer(max_bandwidth_kbps, max_message_rate, asyncio.get_running_loop().time),
            offering=True,
            relay_only=relay_only or (guide is not None and guide.relay_only),
            send_queue_bytes=send_queue_bytes,
        )
        async with link._living():
            link.offer_sdp = link._transport.describe(
                "offer",
                dtls_role="auto",
                mid="0",
                channels=link._proposed(),
            )
            yield link

    @classmethod
    @asynccontextmanager
    async def answering(
        cls,
        offer_sdp: str,
        certificate: Certificate,
        *,
        expected_fingerprint: Fingerprint,
        granted: Iterable[ChannelName],
        ice_servers: Sequence[IceServer] = (),
        guide: IceGuide | None = None,
        relay_only: bool = False,
        send_queue_bytes: int = SEND_QUEUE_CAP_BYTES,
        max_bandwidth_kbps: int = 0,
        max_message_rate: int = 0,
        on_rejected: OnRejected | None = None,
    ) -> AsyncIterator[PeerLink]:
        """
        A link whose `answer_sdp` is ready, and which connects from now on.

        expected_fingerprint  of the grant: the offer must have it, and the certificate too
        on_rejected           awaited for each channel that the peer opened without a grant, once
                              it was closed; the error's message is `Channel NAME was rejected`

        Raises SdpInvalid, FingerprintAmbiguous, FingerprintMismatch, NoCandidates,
        RelayUnavailable (with relay_only).
        """
        remote = read_description(offer_sdp)
        expected_fingerprint.expect(remote.fingerprint)
        link = cls(
            certificate,
            await _live_servers(ice_servers, guide),
            granted,
            Pacer(max_bandwidth_kbps, max_message_rate, asyncio.get_running_loop().time),
            offering=False,
            relay_only=relay_only or (guide is not None and guide.relay_only),
            send_queue_bytes=send_queue_bytes,
            on_rejected=on_rejected,
        )
        async with link._living():
            role: DtlsRole = "server" if remote.dtls_role == "client" else "client"
            link._transport.agree(remote)
            link.answer_sdp = link._transport.describe(
                "answer", dtls_role=role, mid=remote.mid, channels=link._agreed(remote)
            )
            link._connect(remote, role)
            yield link

    async def accept_answer(self, sdp: str, *, expected_fingerprint: Fingerprint) -> None:
        """
        Start to connect to the peer that wrote this answer; it must have that fingerprint.

        Raises SdpInvalid, FingerprintAmbiguous, FingerprintMismatch: no packet was sent.
        """
        remote = read_description(sdp)
        expected_fingerprint.expect(remote.fingerprint)
        if remote.dtls_role == "auto":
            raise SdpInvalid("An answer says who begins: `a=setup` is active or passive.")
        if self.state is not LinkState.NEW:
            raise SdpInvalid(f"An answer came while the link was {self.state}.")
        if remote.sctp_init == self._transport.association.early_init:
            # Some peers copy into their answer whatever they do not know: that agrees to nothing.
            remote = replace(remote, channels={}, sctp_init="")
        self._transport.agree(remote)
        self._connect(remote, "server" if remote.dtls_role == "client" else "client")

    def add_remote_candidate(
        self, candidate: str, sdp_mid: str | None = None, sdp_m_line_index: int | None = None
    ) -> None:
        """
        Take one more address of the peer; the empty string is the end of candidates.

        There is one media section, so neither mid nor index tells anything. Candidates that are
        of no use here are dropped. Raises TooManyCandidates after 32.
        """
        text = candidate.strip().removeprefix("a=").removeprefix("candidate:")
        if not text:
            # Not told to ICE: the peer's checks may still show an address that no candidate
            # named, and the deadline of `opened` ends the wait.
            return
        self._candidates += 1
        if self._candidates > MAX_REMOTE_CANDIDATES:
            raise TooManyCandidates(f"The peer sent more than {MAX_REMOTE_CANDIDATES} candidates.")
        found = read_candidate(text)
        if found is not None and not self._ended.is_set():
            self._tasks.start(self._transport.add_candidate(found), "remote candidate")

    async def opened(self, deadline_s: float = 10.0) -> None:
        """
        Wait until the link is open: for the offering side, its channels; for the answering side,
        `espctl` where it is granted.

        Raises LinkNotOpened at the deadline, which also ends the link, or the link's error:
        LinkUnreachable, HandshakeFailed, FingerprintMismatch, LinkClosed. Where no way was found
        and a relay that was configured gave no address, that is the error: RelayUnavailable.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._settled.wait()
        except TimeoutError as exc:
            error = self._unopened(
                LinkNotOpened(
                    f"The connection was not open after {deadline_s:g} s.",
                    progress=self._transport.progress(),
                )
            )
            self._end(error)
            raise error from exc
        if self._ended.is_set():
            raise self.error or LinkClosed("The connection was closed.")

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
    def pair(self) -> tuple[str, str] | None:
        """The addresses in use, ours and the peer's, as `host:port`."""
        return self._transport.pair

    # The life of a link.

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
            await self._finish()
            await self._tasks.cancel()

    def _connect(self, remote: RemoteDescription, role: DtlsRole) -> None:
        self.remote_fingerprint = remote.fingerprint
        self._move(LinkState.CONNECTING)
        agreed = self._agreed(remote)
        for name, channel in self._channels.items():
            if self._offering or name in agreed:
                channel.attach(self._transport.open_channel(name, agreed.get(name)))
        self._tasks.start(self._live(remote, role), "link life")

    def _proposed(self) -> dict[ChannelName, int]:
        """The streams that an offer names: none where a copy of it could not be told apart."""
        if not self._transport.association.early_init:
            return {}
        return {name: STREAM_IDS[name] for name in self._channels}

    def _agreed(self, remote: RemoteDescription) -> dict[ChannelName, int]:
        """The channels whose streams are known without a word about them on the connection."""
        return {
            name: STREAM_IDS[name]
            for name in self._channels
            if remote.channels.get(name) == STREAM_IDS[name]
        }

    async def _live(self, remote: RemoteDescription, role: DtlsRole) -> None:
        try:
            await self._transport.connect(remote, role)
            async with TaskOwner.around(self._open_when_ready(), "link opening"):
                await self._watch()
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

    async def _watch(self) -> None:
        """Ping when idle, until the link ends here or there; raise when the peer is gone."""
        association, scheduler = self._transport.association, self._scheduler
        liveness = Liveness(self._clock())
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(TICK_S):
                    await self._transport.ended.wait()
                self._end(await self._transport.why_ended())
                return
            except TimeoutError:
                pass
            unacked_bytes = association.in_flight_bytes + scheduler.buffered_bytes
            if liveness.gone(
                self._clock(),
                heard_at_s=association.heard_at,
                acked_bytes=scheduler.handed_bytes - unacked_bytes,
                unacked_bytes=unacked_bytes,
            ):
                silence_s = round(self._clock() - association.heard_at, 1)
                raise PeerGone(f"The peer said nothing for {silence_s} s.", silence_s=silence_s)
            if self._clock() - scheduler.handed_at > PING_AFTER_S - TICK_S:
                await self._ping()

    async def _ping(self) -> None:
        if not self._scheduler.send_now(ChannelName.ESPCTL, PING):
            with suppress(ConnectionError):
                await self._transport.association.knock()

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
            if self.error is None and connected and not self._transport.ended.is_set():
                self._queue_moved()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._flush_limit_s):
                        await self._delivered.wait()
            await self._transport.stop()

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
        elif not self._ended.is_set():
            self._reject(raw)

    def _reject(self, raw: RTCDataChannel) -> None:
        raw.close()
        label = "".join(c if c.isprintable() else "?" for c in raw.label[:_SHOWN_LABEL_CHARS])
        _log.warning("channel.rejected", channel=label)
        self._rejected += 1
        if self._rejected > MAX_REJECTED_CHANNELS:
            self._end(LinkFlooded("The peer opens one channel after another without a grant."))
        elif self._on_rejected is not None:
            error = ChannelNotGranted(f"Channel {label} was rejected", channel=label)
            self._tasks.start(self._tell_rejected(self._on_rejected, error), "channel rejected")

    async def _tell_rejected(self, tell: OnRejected, error: ChannelNotGranted) -> None:
        with suppress(AegisError):  # the link ended meanwhile: nobody is left to be told
            await tell(error)


async def _live_servers(servers: Sequence[IceServer], guide: IceGuide | None) -> LiveServers:
    return await (find_live(servers) if guide is None else guide.living(servers))
