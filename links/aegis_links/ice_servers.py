"""
Which STUN and TURN servers are worth asking: each is knocked at before ICE waits for it.

ICE takes one STUN and one TURN server, the first of each kind, and a dead one costs it five
seconds. So each is asked here, all at once, with half a second to answer anything at all.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import structlog
from aegis_protocol.http_api import IceServer

PROBE_DEADLINE_S: Final = 0.5

_URL: Final = re.compile(
    r"(?P<scheme>stun|turn|turns):(?P<host>\[[0-9a-fA-F:.]+\]|[^?:\[\]]+)(?::(?P<port>\d{1,5}))?"
    r"(?:\?transport=(?P<transport>udp|tcp))?"
)
_RESEND_S: Final = 0.15
_COOKIE: Final = 0x2112A442  # RFC 8489 section 5
_BINDING: Final = 0x0001
_ALLOCATE: Final = 0x0003  # RFC 8656; a TURN server may be told to ignore binding requests
_REQUESTED_TRANSPORT_UDP: Final = struct.pack(">HHB3x", 0x0019, 4, socket.IPPROTO_UDP)

_log = structlog.get_logger("aegis_links.ice_servers")

Scheme: TypeAlias = Literal["stun", "turn"]


@dataclass(frozen=True)
class ServerAddress:
    """One URL of an ICE server, taken apart."""

    url: str
    scheme: Scheme
    host: str
    port: int
    transport: Literal["udp", "tcp"]
    username: str | None
    credential: str | None


@dataclass(frozen=True)
class LiveServers:
    """The first server of each kind that answered. turn_asked: a TURN server was configured."""

    stun: ServerAddress | None = None
    turn: ServerAddress | None = None
    turn_asked: bool = False


@dataclass(frozen=True)
class ServerAnswer:
    """reason: why it is of no use; None where it answered."""

    url: str
    reason: str | None


async def ask_all(
    servers: Sequence[IceServer], *, deadline_s: float = PROBE_DEADLINE_S
) -> tuple[ServerAnswer, ...]:
    """Knock at each server and tell what came of it. Never raises."""
    addresses = [address for server in servers for address in _addresses(server)]
    refusals = await asyncio.gather(*(_refusal(address, deadline_s) for address in addresses))
    return tuple(
        ServerAnswer(address.url, reason)
        for address, reason in zip(addresses, refusals, strict=True)
    )


async def find_live(
    servers: Sequence[IceServer], *, deadline_s: float = PROBE_DEADLINE_S
) -> LiveServers:
    """Return the servers to use; what is left out is logged with the reason. Never raises."""
    addresses = [address for server in servers for address in _addresses(server)]
    refusals = await asyncio.gather(*(_refusal(address, deadline_s) for address in addresses))
    live = [address for address, reason in zip(addresses, refusals, strict=True) if not reason]
    return LiveServers(
        stun=next((address for address in live if address.scheme == "stun"), None),
        turn=next((address for address in live if address.scheme == "turn"), None),
        turn_asked=any(address.scheme == "turn" for address in addresses),
    )


def _addresses(server: IceServer) -> list[ServerAddress]:
    found = []
    for url in server.urls:
        match = _URL.fullmatch(url)
        if match is None:
            _log.warning("ice_server.left_out", url=url, reason="the URL can't be used here")
            continue
        secure = match["scheme"] == "turns"
        scheme: Scheme = "stun" if match["scheme"] == "stun" else "turn"
        transport: Literal["udp", "tcp"] = "tcp" if secure or match["transport"] == "tcp" else "udp"
        port = int(match["port"] or (5349 if secure else 3478))
        host = match["host"].strip("[]")
        found.append(
            ServerAddress(url, scheme, host, port, transport, server.username, server.credential)
        )
    return found


async def _refusal(address: ServerAddress, deadline_s: float) -> str | None:
    knock = _knock_udp if address.transport == "udp" else _knock_tcp
    try:
        async with asyncio.timeout(deadline_s):
            await knock(address)
    except TimeoutError:
        reason = "no answer in time"
    except OSError as exc:
        reason = str(exc) or type(exc).__name__
    else:
        return None
    _log.warning("ice_server.left_out", url=address.url, reason=reason)
    return reason


async def _knock_tcp(address: ServerAddress) -> None:
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.transport.abort()


async def _knock_udp(address: ServerAddress) -> None:
    """Return when the server answers a request of ours, with whatever verdict."""
    loop = asyncio.get_running_loop()
    # ICE resolves a STUN server to IPv4 only, so that is what is knocked at.
    family = socket.AF_INET if address.scheme == "stun" else socket.AF_UNSPEC
    found = await loop.getaddrinfo(
        address.host, address.port, family=family, type=socket.SOCK_DGRAM
    )
    transaction = secrets.token_bytes(12)
    if address.scheme == "stun":
        kind, attributes = _BINDING, b""
    else:
        kind, attributes = _ALLOCATE, _REQUESTED_TRANSPORT_UDP
    request = struct.pack(">HHI", kind, len(attributes), _COOKIE) + transaction + attributes
    transport, door = await loop.create_datagram_endpoint(
        lambda: _Door(transaction), remote_addr=(str(found[0][4][0]), address.port)
    )
    try:
        while not door.opened.done():
            transport.sendto(request)
            await asyncio.wait({door.opened}, timeout=_RESEND_S)
        door.opened.result()
    finally:
        transport.abort()
        door.opened.cancel()


class _Door(asyncio.DatagramProtocol):
    """Waits for the answer to one STUN transaction."""

    def __init__(self, transaction: bytes) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transaction = transaction

    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) >= 20 and data[8:20] == self._transaction and not self.opened.done():
            self.opened.set_result(None)

    def error_received(self, exc: Exception) -> None:
        """A closed port says so at once (ICMP)."""
        if not self.opened.done():
            self.opened.set_exception(exc)
