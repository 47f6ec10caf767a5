"""
Knocking at a STUN or TURN server: does anything that speaks STUN answer there at all?

A TURN server is asked for an address without credentials, which costs it nothing: it says no, and
that it is there.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import struct
from typing import Final, Literal, TypeAlias

KNOCK_DEADLINE_S: Final = {"udp": 0.5, "tcp": 1.0, "tls": 1.5}
"""One round trip by UDP; two by TCP, three by TLS, or four."""

_RESEND_S: Final = 0.15
_COOKIE: Final = 0x2112A442  # RFC 8489 section 5
_BINDING: Final = 0x0001
_ALLOCATE: Final = 0x0003  # RFC 8656; a TURN server may be told to ignore binding requests
_REQUESTED_TRANSPORT_UDP: Final = struct.pack(">HHB3x", 0x0019, 4, socket.IPPROTO_UDP)
_HEADER: Final = 20

Scheme: TypeAlias = Literal["stun", "turn"]


async def knocked(
    scheme: Scheme,
    host: str,
    port: int,
    transport: Literal["udp", "tcp", "tls"],
    tls: ssl.SSLContext | None,
) -> str | None:
    """
    Return None when the server answered, with whatever verdict; else why it is of no use.

    tls  needed for the transport of that name
    """
    try:
        async with asyncio.timeout(KNOCK_DEADLINE_S[transport]):
            if transport == "udp":
                await _by_udp(scheme, host, port)
            else:
                await _by_tcp(host, port, tls if transport == "tls" else None)
    except TimeoutError:
        return "no answer in time"
    except ssl.SSLCertVerificationError as exc:
        return f"its certificate is not trusted: {exc.verify_message}"
    except ssl.SSLError as exc:
        return f"no TLS there: {exc.reason or exc}"
    except UnicodeError:  # of Python's own coding of names, before anybody is asked
        return "no host can have that name"
    except (OSError, EOFError) as exc:
        return str(exc) or type(exc).__name__
    return None


async def _by_tcp(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        transaction = secrets.token_bytes(12)
        writer.write(_request(_ALLOCATE, _REQUESTED_TRANSPORT_UDP, transaction))
        if (await reader.readexactly(_HEADER))[8:20] != transaction:
            raise OSError("what answers there is no TURN server")
    except asyncio.IncompleteReadError as exc:
        raise OSError("what answers there is no TURN server") from exc
    finally:
        writer.transport.abort()


async def _by_udp(scheme: Scheme, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    # ICE resolves a STUN server to IPv4 only, so that is what is knocked at.
    family = socket.AF_INET if scheme == "stun" else socket.AF_UNSPEC
    found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
    transaction = secrets.token_bytes(12)
    if scheme == "stun":
        request = _request(_BINDING, b"", transaction)
    else:
        request = _request(_ALLOCATE, _REQUESTED_TRANSPORT_UDP, transaction)
    transport, door = await loop.create_datagram_endpoint(
        lambda: _Door(transaction), remote_addr=(str(found[0][4][0]), port)
    )
    try:
        while not door.opened.done():
            transport.sendto(request)
            await asyncio.wait({door.opened}, timeout=_RESEND_S)
        door.opened.result()
    finally:
        transport.abort()
        door.opened.cancel()


def _request(kind: int, attributes: bytes, transaction: bytes) -> bytes:
    return struct.pack(">HHI", kind, len(attributes), _COOKIE) + transaction + attributes


class _Door(asyncio.DatagramProtocol):
    """Waits for the answer to one STUN transaction."""

    def __init__(self, transaction: bytes) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transaction = transaction

    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) >= _HEADER and data[8:20] == self._transaction and not self.opened.done():
            self.opened.set_result(None)

    def error_received(self, exc: Exception) -> None:
        """A closed port says so at once (ICMP)."""
        if not self.opened.done():
            self.opened.set_exception(exc)
