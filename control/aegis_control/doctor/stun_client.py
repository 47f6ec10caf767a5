"""
As much of STUN (RFC 8489) and TURN (RFC 8656) as it takes to ask: who am I, and may I have a relay?

By UDP, TCP and TLS. An allocation is given back at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias
from urllib.parse import parse_qs

Transport: TypeAlias = Literal["udp", "tcp", "tls"]

LIMIT_S: Final = 5.0

_COOKIE: Final = 0x2112A442
_HEAD: Final = struct.Struct("!HHI12s")
_BINDING, _ALLOCATE, _REFRESH = 0x0001, 0x0003, 0x0004
_SUCCESS, _ERROR = 0x0100, 0x0110
_USERNAME, _INTEGRITY, _CODE, _REALM, _NONCE = 0x0006, 0x0008, 0x0009, 0x0014, 0x0015
_LIFETIME, _RELAYED, _ASKED_TRANSPORT, _MAPPED = 0x000D, 0x0016, 0x0019, 0x0020
_BY_UDP: Final = struct.pack("!B3x", 17)
_UNAUTHORIZED, _STALE_NONCE = 401, 438
_AGAIN_S: Final = 0.5
_MOST_BYTES: Final = 4096


class StunRefused(Exception):
    """The server answered, but with an error: `code` and its words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    transport: Transport

    @classmethod
    def parse(cls, url: str) -> Server:
        """Read a URL such as `turn:host:3478?transport=tcp` (RFC 7064, 7065)."""
        scheme, _, rest = url.partition(":")
        place, _, query = rest.partition("?")
        secure = scheme in ("stuns", "turns")
        host, port = place, 5349 if secure else 3478
        if place.startswith("["):
            host, _, tail = place[1:].partition("]")
            port = int(tail[1:]) if tail.startswith(":") else port
        elif place.count(":") == 1:
            host, _, text = place.partition(":")
            port = int(text)
        chosen = parse_qs(query).get("transport", ["udp"])[0]
        return cls(host, port, "tls" if secure else "tcp" if chosen == "tcp" else "udp")


async def ask_address(server: Server, tls: ssl.SSLContext | None = None) -> str:
    """
    Return the address that the server sees us with.

    Raises OSError (TimeoutError among them) without an answer, StunRefused for an error.
    """
    async with asyncio.timeout(LIMIT_S), _connected(server, tls) as wire:
        answer = await _ask(wire, _BINDING, [])
        return _address(answer.get(_MAPPED, b""), answer.transaction)


async def ask_relay(
    server: Server, username: str, password: str, tls: ssl.SSLContext | None = None
) -> str:
    """Allocate a relay, give it back, and return its address. Raises as `ask_address`."""
    async with asyncio.timeout(LIMIT_S), _connected(server, tls) as wire:
        wanted = [(_ASKED_TRANSPORT, _BY_UDP)]
        try:
            await _ask(wire, _ALLOCATE, wanted)
            raise StunRefused(0, "it gives relays to anybody, without credentials")
        except _Challenged as asked:
            key = _Key.of(username, password, asked)
        answer = await _ask(wire, _ALLOCATE, wanted, key)
        await _ask(wire, _REFRESH, [(_LIFETIME, struct.pack("!I", 0))], key)
        return _address(answer.get(_RELAYED, b""), answer.transaction)


class _Challenged(StunRefused):
    def __init__(self, code: int, reason: str, realm: bytes, nonce: bytes) -> None:
        super().__init__(code, reason)
        self.realm, self.nonce = realm, nonce


@dataclass(frozen=True)
class _Key:
    """Long-term credentials (RFC 8489, 9.2) and what must go along with them."""

    attributes: tuple[tuple[int, bytes], ...]
    key: bytes

    @classmethod
    def of(cls, username: str, password: str, asked: _Challenged) -> _Key:
        name = username.encode()
        words = b":".join((name, asked.realm, password.encode()))
        return cls(
            ((_USERNAME, name), (_REALM, asked.realm), (_NONCE, asked.nonce)),
            hashlib.md5(words, usedforsecurity=False).digest(),
        )


@dataclass(frozen=True)
class _Answer:
    kind: int
    transaction: bytes
    attributes: Mapping[int, bytes]

    def get(self, kind: int, default: bytes) -> bytes:
        return self.attributes.get(kind, default)


class _Wire:
    """One association with a server: messages out, messages in."""

    async def send(self, message: bytes) -> None:
        raise ConnectionError

    async def receive(self) -> bytes:
        raise ConnectionError


class _Datagrams(_Wire):
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def send(self, message: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, message)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._sock, _MOST_BYTES)


class _Stream(_Wire):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, message: bytes) -> None:
        self._writer.write(message)
        await self._writer.drain()

    async def receive(self) -> bytes:
        try:
            head = await self._reader.readexactly(_HEAD.size)
            return head + await self._reader.readexactly(struct.unpack_from("!H", head, 2)[0])
        except asyncio.IncompleteReadError as exc:
            raise ConnectionResetError("the server closed the connection") from exc


@asynccontextmanager
async def _connected(server: Server, tls: ssl.SSLContext | None) -> AsyncIterator[_Wire]:
    loop = asyncio.get_running_loop()
    if server.transport == "udp":
        found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        family, kind, proto, _, address = found[0]
        with socket.socket(family, kind, proto) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            yield _Datagrams(sock)
        return
    context = (tls or ssl.create_default_context()) if server.transport == "tls" else None
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    try:
        yield _Stream(reader, writer)
    finally:
        writer.transport.abort()


async def _ask(
    wire: _Wire, method: int, attributes: list[tuple[int, bytes]], key: _Key | None = None
) -> _Answer:
    """Send a request until it is answered; raises _Challenged, StunRefused."""
    transaction = os.urandom(12)
    request = _request(method, transaction, attributes, key)
    await wire.send(request)
    while True:
        try:
            async with asyncio.timeout(_AGAIN_S):
                answer = _read(await wire.receive())
        except TimeoutError:
            if isinstance(wire, _Datagrams):
                await wire.send(request)
            continue
        if answer is None or answer.transaction != transaction:
            continue
        if answer.kind == method | _SUCCESS:
            return answer
        if answer.kind == method | _ERROR:
            raise _refusal(answer)


def _request(
    method: int, transaction: bytes, attributes: list[tuple[int, bytes]], key: _Key | None
) -> bytes:
    body = b"".join(_attribute(*one) for one in (*attributes, *(key.attributes if key else ())))
    if key is None:
        return _HEAD.pack(method, len(body), _COOKIE, transaction) + body
    signed = _HEAD.pack(method, len(body) + 24, _COOKIE, transaction) + body
    return signed + _attribute(_INTEGRITY, hmac.new(key.key, signed, hashlib.sha1).digest())


def _read(message: bytes) -> _Answer | None:
    """None for what is no STUN message."""
    if len(message) < _HEAD.size:
        return None
    kind, length, cookie, transaction = _HEAD.unpack_from(message)
    if cookie != _COOKIE or len(message) < _HEAD.size + length:
        return None
    attributes: dict[int, bytes] = {}
    place, end = _HEAD.size, _HEAD.size + length
    while place + 4 <= end:
        name, size = struct.unpack_from("!HH", message, place)
        attributes.setdefault(name, message[place + 4 : place + 4 + size])
        place += 4 + size + -size % 4
    return _Answer(kind, transaction, attributes)


def _refusal(answer: _Answer) -> StunRefused:
    words = answer.get(_CODE, bytes(4))
    code = (words[2] & 7) * 100 + words[3] if len(words) >= 4 else 0
    reason = words[4:].decode(errors="replace")
    if code in (_UNAUTHORIZED, _STALE_NONCE) and _NONCE in answer.attributes:
        return _Challenged(code, reason, answer.get(_REALM, b""), answer.get(_NONCE, b""))
    return StunRefused(code, reason)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _address(value: bytes, transaction: bytes) -> str:
    """An XOR-… address (RFC 8489, 14.2) as host:port."""
    if len(value) not in (8, 20):
        raise StunRefused(0, "the answer has no address")
    mask = struct.pack("!I", _COOKIE) + transaction
    port = struct.unpack_from("!H", value, 2)[0] ^ (_COOKIE >> 16)
    host = ip_address(bytes(a ^ b for a, b in zip(value[4:], mask, strict=False)))
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
