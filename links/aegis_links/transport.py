"""
The stack under a link: ICE finds a way, DTLS makes it private and proves who is there, SCTP
carries messages. This file puts aiortc's three transports together and takes them down again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Literal

import structlog
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import JsonFact
from aegis_protocol.failures.link import (
    HandshakeFailed,
    LinkBroken,
    LinkError,
    LinkUnreachable,
    NoCandidates,
    PeerGone,
    RelayUnavailable,
)
from aegis_protocol.fingerprint import Fingerprint
from aioice.ice import Connection, StunProtocol
from aiortc import (
    RTCDataChannel,
    RTCDataChannelParameters,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCIceGatherer,
    RTCIceTransport,
)
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from aiortc.rtcdtlstransport import RTCDtlsFingerprint, RTCDtlsParameters
from aiortc.rtcsctptransport import RTCSctpCapabilities
from cryptography.hazmat.primitives.hashes import SHA256

from aegis_links.association import Association, AssociationEars, FastAssociation
from aegis_links.certificate import Certificate
from aegis_links.consent import query_consent
from aegis_links.datagram_queue import DatagramQueue
from aegis_links.fast.dtls import FastDtls
from aegis_links.fast.guard import is_fast
from aegis_links.fast.receiving import Breach
from aegis_links.gathering import gathered
from aegis_links.ice_servers import LiveServers
from aegis_links.relay import add_relayed, give_back
from aegis_links.session_description import DtlsRole, RemoteDescription, write_description

STOP_LIMIT_S: Final = 2.0
_log = structlog.get_logger("aegis_links.transport")


class Transport:
    """
    One attempt at a connection. Call `gather`, then `connect`, and `stop` in any case.

    offering     we wrote the offer: ICE calls that side the controlling one
    on_channel   called for each data channel that the peer opens
    """

    def __init__(
        self,
        certificate: Certificate,
        servers: LiveServers,
        ears: AssociationEars,
        *,
        offering: bool,
        relay_only: bool,
        on_channel: Callable[[RTCDataChannel], None],
    ) -> None:
        self.relay_unavailable: RelayUnavailable | None = None
        self.way_found_s: float | None = None
        """How long ICE took to find a way to the peer."""
        self.ended = asyncio.Event()
        """Set when the connection is over, for whatever reason: `why_ended` tells."""
        self._agreed = False
        self._servers = servers
        self._relay_only = relay_only
        self._certificate = certificate
        self._gatherer = RTCIceGatherer(
            [], RTCIceTransportPolicy.RELAY if relay_only else RTCIceTransportPolicy.ALL
        )
        self._ice = RTCIceTransport(self._gatherer)
        connection = self._ice._connection
        stun = (servers.stun.host, servers.stun.port) if servers.stun is not None else None
        connection.ice_controlling = offering
        connection._queue = DatagramQueue()
        connection.get_component_candidates = partial(  # type: ignore[method-assign]
            gathered, connection, stun
        )
        connection.query_consent = partial(query_consent, connection)  # type: ignore[method-assign]
        connection.protocol_lost = self._socket_lost  # type: ignore[method-assign]
        self._way_lost = False
        fast = is_fast()
        self._dtls = (FastDtls if fast else RTCDtlsTransport)(self._ice, [certificate.rtc])
        self._dtls.on("statechange", self._dtls_moved)
        self.association: Association = (FastAssociation if fast else Association)(
            self._dtls, ears, self.ended
        )
        self.association.on("datachannel", on_channel)

    async def gather(self) -> None:
        """
        Find this side's addresses.

        Raises
        ------
        NoCandidates      there is nothing but loopback
        RelayUnavailable  only relayed addresses are allowed, and there is none
        """
        connection = self._ice._connection
        refused, _ = await asyncio.gather(
            add_relayed(connection, self._servers, hides_address=self._relay_only),
            self._gatherer.gather(),
        )
        kinds = [candidate.type for candidate in connection.local_candidates]
        if refused is not None:
            self.relay_unavailable = refused
            _log.warning("relay.not_available", code=refused.code, reason=refused.message)
        if not kinds and self._relay_only:
            raise self.relay_unavailable or RelayUnavailable(
                "Only relayed connections are allowed, and no TURN server is configured."
            )
        if not kinds:
            raise NoCandidates("This machine has a loopback address only.")

    def describe(
        self,
        kind: Literal["offer", "answer"],
        *,
        dtls_role: DtlsRole,
        mid: str,
        channels: Mapping[ChannelName, int],
    ) -> str:
        """Return this side's description; `gather` first, and for an answer `agree`."""
        return write_description(
            kind,
            self._gatherer,
            self._certificate.fingerprint,
            dtls_role=dtls_role,
            mid=mid,
            channels=channels,
            sctp_init=self.association.early_init if kind == "offer" or self._agreed else "",
        )

    def agree(self, remote: RemoteDescription) -> None:
        """Take what the peer's description says about SCTP's set-up; before `connect`."""
        self._agreed = self.association.agree(remote.sctp_init)

    def open_channel(self, label: str, stream_id: int | None = None) -> RTCDataChannel:
        """
        Open a channel, now or as soon as the peer is there: on the stream that both descriptions
        name, or, without one, by announcing it to the peer.
        """
        return RTCDataChannel(
            self.association,
            RTCDataChannelParameters(label=label, negotiated=stream_id is not None, id=stream_id),
        )

    async def add_candidate(self, candidate: RTCIceCandidate | None) -> None:
        """Give ICE one more address of the peer, or None: there will be no more."""
        with suppress(ValueError):  # after the end of candidates; harmless
            await self._ice.addRemoteCandidate(candidate)

    async def connect(self, remote: RemoteDescription, dtls_role: DtlsRole) -> None:
        """
        Connect to the peer that `remote` describes; no data flows before its certificate was
        found to be the one whose fingerprint the description has.

        Has no limit of its own.

        Raises
        ------
        LinkUnreachable      no pair of addresses works
        FingerprintMismatch  somebody else answered
        HandshakeFailed      DTLS or SCTP did not come about
        """
        began = time.monotonic()
        for candidate in remote.candidates:
            await self.add_candidate(candidate)
        if remote.complete:
            await self.add_candidate(None)
        await self._ice.start(remote.ice)
        if self._ice.state != "completed":
            raise LinkUnreachable("No pair of addresses works.", progress=self.progress())
        self.way_found_s = time.monotonic() - began
        self._dtls._set_role(dtls_role)
        expected = RTCDtlsFingerprint("sha-256", remote.fingerprint.pairs)
        await self._dtls.start(RTCDtlsParameters([expected]))
        self._check_certificate(remote.fingerprint)
        if self._dtls.state != "connected":
            raise HandshakeFailed("The DTLS handshake failed.", progress=self.progress())
        try:
            await self.association.start(
                RTCSctpCapabilities(remote.max_message_bytes), remote.sctp_port
            )
            await self._established_or_ended()
        except ConnectionError as exc:
            raise HandshakeFailed("The peer was lost.", progress=self.progress()) from exc
        if self.ended.is_set():
            raise HandshakeFailed("The peer refused the association.", progress=self.progress())

    async def why_ended(self) -> LinkError | None:
        """Return None where the peer closed the connection on purpose."""
        breach = self.association.broken_by
        if breach is Breach.NONSENSE:
            return LinkBroken(breach.value)
        if breach is Breach.SILENCE:
            return PeerGone(breach.value)
        pump = self._dtls._task
        if pump is not None and self._dtls.state == "closed":
            await asyncio.wait({pump}, timeout=STOP_LIMIT_S)
            if pump.done() and not pump.cancelled() and pump.exception() is not None:
                return LinkBroken("The peer sent something that breaks the protocol.")
        if self._way_lost or self._ice.state == "failed":
            return PeerGone("The network path to the peer is gone.")
        return None

    def progress(self) -> dict[str, JsonFact]:
        """How far the connection came, as facts for an error or `doctor`."""
        connection = self._ice._connection
        return {
            "ice": self._ice.state,
            "dtls": self._dtls.state,
            "local_candidates": len(connection.local_candidates),
            "remote_candidates": len(connection.remote_candidates),
        }

    @property
    def path(self) -> str:
        """The kinds of address in use, ours and the peer's: `host/srflx`; empty before."""
        for pair in self._ice._connection._nominated.values():
            return f"{pair.local_candidate.type}/{pair.remote_candidate.type}"
        return ""

    @property
    def pair(self) -> tuple[str, str] | None:
        """The addresses in use, ours and the peer's, as `host:port`; None before."""
        for pair in self._ice._connection._nominated.values():
            ours, theirs = pair.local_candidate, pair.remote_candidate
            return f"{ours.host}:{ours.port}", f"{theirs.host}:{theirs.port}"
        return None

    async def stop(self) -> None:
        """Tell the peer, and give back every socket and task. May be called twice."""
        pump = self._dtls._task
        # aiortc's ICE monitor never ends if it is stopped before its first step.
        await asyncio.sleep(0)
        await self._bounded("association", self.association.stop)
        await self._bounded("dtls", self._dtls.stop)
        sockets = list(self._ice._connection._protocols)
        await give_back(self._ice._connection)
        await self._bounded("ice", self._ice.stop)
        for protocol in sockets:  # where ICE did not come to it in time
            protocol.transport.close()
        if pump is not None:
            pump.cancel()
            await asyncio.wait({pump}, timeout=STOP_LIMIT_S)
            if pump.done() and not pump.cancelled():
                pump.exception()  # fetched: `why_ended` has told of it
        self.ended.set()

    async def _bounded(self, part: str, stop: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await stop()
        except ConnectionError:
            pass  # the way to the peer is gone already
        except TimeoutError:
            _log.warning("transport.stop_timed_out", part=part)

    def _check_certificate(self, expected: Fingerprint) -> None:
        connection = self._dtls._ssl
        found = connection.get_peer_certificate(as_cryptography=True) if connection else None
        if found is not None:
            expected.expect(Fingerprint(found.fingerprint(SHA256())))

    def _socket_lost(self, protocol: StunProtocol) -> None:
        """A socket is closed though nobody here did it: above all that of a relay over TCP."""
        connection = self._ice._connection
        if any(pair.protocol is protocol for pair in connection._nominated.values()):
            self._way_lost = True
        Connection.protocol_lost(connection, protocol)

    def _dtls_moved(self) -> None:
        if self._dtls.state in ("closed", "failed"):
            self.ended.set()

    async def _established_or_ended(self) -> None:
        waiters = [
            asyncio.ensure_future(event.wait())
            for event in (self.association.established, self.ended)
        ]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
