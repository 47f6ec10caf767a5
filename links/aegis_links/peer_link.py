"""
A link to one peer: from the certificate to the last message, with states, errors and deadlines.

The client offers and creates the channels, the agent answers. Here stands how a link comes about;
`link_life` has what happens to it then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES, STREAM_IDS, ChannelName
from aegis_protocol.failures.link import (
    LinkClosed,
    LinkNotOpened,
    SdpInvalid,
    TooManyCandidates,
)
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.http_api.grants import IceServer

from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_links.ice_servers import LiveServers, find_live
from aegis_links.link_life import LinkLife
from aegis_links.pacing import Pacer
from aegis_links.rejecting import OnRejected
from aegis_links.session_description import (
    MAX_REMOTE_CANDIDATES,
    DtlsRole,
    RemoteDescription,
    read_candidate,
    read_description,
)
from aegis_links.states import LinkState


class PeerLink(LinkLife):
    """Made by `offering` and `answering`, which open it and close it."""

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


async def _live_servers(servers: Sequence[IceServer], guide: IceGuide | None) -> LiveServers:
    return await (find_live(servers) if guide is None else guide.living(servers))
