"""Two peers in one process, linked over this host's own interface by the real transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import ChannelNotGranted
from aegis_protocol.http_api.grants import IceServer
from bench.udp_path import UdpPath

ALL = frozenset(ChannelName)


@dataclass
class Peers:
    client: PeerLink
    agent: PeerLink
    rejected: list[ChannelNotGranted] = field(default_factory=list)


@asynccontextmanager
async def linked_peers(
    channels: Iterable[ChannelName] = ALL,
    granted: Iterable[ChannelName] = ALL,
    *,
    max_bandwidth_kbps: int = 0,
    max_message_rate: int = 0,
    path: UdpPath | None = None,
    ice_servers: Sequence[IceServer] = (),
    guide: IceGuide | None = None,
    relay_only: bool = False,
) -> AsyncIterator[Peers]:
    """
    An open link: the client offers, the agent answers; what is sent either way is limited alike.

    path  what lies between them; nothing but this host's network by default
    """
    client_certificate, agent_certificate = Certificate.generate(), Certificate.generate()
    rejected: list[ChannelNotGranted] = []

    async def note(error: ChannelNotGranted) -> None:
        rejected.append(error)

    async with (
        PeerLink.offering(
            client_certificate,
            channels=channels,
            ice_servers=ice_servers,
            guide=guide,
            relay_only=relay_only,
            max_bandwidth_kbps=max_bandwidth_kbps,
            max_message_rate=max_message_rate,
        ) as client,
        PeerLink.answering(
            path.of_offer(client.offer_sdp) if path else client.offer_sdp,
            agent_certificate,
            expected_fingerprint=client_certificate.fingerprint,
            granted=granted,
            on_rejected=note,
            max_bandwidth_kbps=max_bandwidth_kbps,
            max_message_rate=max_message_rate,
            ice_servers=ice_servers,
            guide=guide,
            relay_only=relay_only,
        ) as agent,
    ):
        await client.accept_answer(
            path.of_answer(agent.answer_sdp) if path else agent.answer_sdp,
            expected_fingerprint=agent_certificate.fingerprint,
        )
        await asyncio.gather(client.opened(10), agent.opened(10))
        yield Peers(client, agent, rejected)
