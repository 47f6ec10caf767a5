"""
Where connections come in, and what is true of them before there is a request.

    a request's headers      within a time, or 408 `request.too_slow`
    what is no HTTP          400 `request.invalid`, as JSON like every other error
    an idle connection       closed after 75 s, longer than reverse proxies keep theirs; or when
                             there is no room for a new one, see `connections`
    a reader that stops      cut by the kernel when nothing was taken for a time (tcp(7),
                             TCP_USER_TIMEOUT), whatever it was being sent
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import ClassVar, Final

from aegis_protocol.errors import AegisError, ErrorBody, ErrorReply
from aegis_protocol.failures.http import BadRequest, RequestTooSlow
from aiohttp import hdrs, web

from aegis_control.http.connections import Connections
from aegis_control.http.handshakes import Handshakes
from aegis_control.http.statuses import RETRY_AFTER_S, status_of
from aegis_control.log import get_logger

log = get_logger("http")

_BACKLOG: Final = 512
_IDLE_S: Final = 75.0
_LINGER_S: Final = 2.0
"""How long what still comes from who was refused is taken, so that the answer is read."""
_SHUTDOWN_S: Final = 4.0
"""Longer than a link or a stream takes to be cut: aiohttp stumbles over one that ends with it."""


@asynccontextmanager
async def serving(
    app: web.Application,
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    *,
    connections: Connections,
    headers_s: float,
    stall_s: float,
) -> AsyncIterator[None]:
    """
    Serve `app` on a bound socket until the block ends.

    connections  of this socket
    headers_s    how long the first request's headers may take
    stall_s      a peer that takes nothing of what it is sent for so long is cut
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):  # connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(stall_s * 1000)))
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=_IDLE_S,
        lingering_time=_LINGER_S,
        auto_decompress=False,  # nothing that we are sent is worth a bomb
    )
    await runner.setup()
    # aiohttp makes its handlers itself, and lets nobody say of which class
    handshakes = None if tls is None else Handshakes(connections, tls)
    own = {"__slots__": (), "connections": connections, "handshakes": handshakes}
    own_desk = type("Desk", (Desk,), own)
    try:
        loop = asyncio.get_running_loop()

        def desk() -> asyncio.Protocol:
            if runner.server is None:
                raise ConnectionAbortedError("control is stopping")
            handler = runner.server()
            handler.__class__ = own_desk
            loop.call_later(headers_s, handler.look)  # type: ignore[attr-defined]
            return handler

        if handshakes is not None:
            async with handshakes.accepting(sock, _BACKLOG, desk):
                yield
            return
        server = await loop.create_server(desk, sock=sock, backlog=_BACKLOG)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


_BYTES: Final = re.compile(r""":? (?:bytearray\()?b['"]""")


class Desk(web.RequestHandler):
    """One connection. It has no attributes of its own: a handler of aiohttp's becomes one."""

    __slots__ = ()

    connections: ClassVar[Connections]
    handshakes: ClassVar[Handshakes | None] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._shakes_hands():  # it was taken in when that began
            return
        error = self.connections.opened(self, _address(transport))
        if error is not None and self.transport is not None:
            self.transport.write(_raw(error, status_of(error.code)))
            self._loop.call_later(_LINGER_S, self.transport.abort)  # nobody counts it
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.connections.closed(self)
        super().connection_lost(exc)

    def is_idle(self) -> bool:
        """Whether it waits for a request, or shakes hands."""
        if self._shakes_hands():
            return True
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages

    def give_way(self) -> None:
        """
        Close the connection, which is idle, at once: a farewell would wait for the other side, and
        take up a file that nobody counts.
        """
        if self.handshakes is not None and self in self.handshakes:
            self.handshakes.give_up(self)
            return
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def _report(self, event: str, **facts: object) -> None:
        (log.info if self.connections.may_say() else log.debug)(event, **facts)

    def _shakes_hands(self) -> bool:
        return self.handshakes is not None and self in self.handshakes

    def look(self) -> None:
        """Close the connection if no request has come."""
        transport = self.transport
        if self._request_count or transport is None or transport.is_closing():
            return
        error = RequestTooSlow("no request came within the time for its headers")
        transport.write(_raw(error, HTTPStatus.REQUEST_TIMEOUT))
        self._report("connection.closed", code=error.code, remote=_address(transport))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read, and say so in a line, not in a traceback."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request.crashed", exc_info=exc, remote=request.remote)
            body = ErrorBody(
                code=AegisError.code,
                message="control met an error of its own",
                remedy=AegisError.remedy,
            )
        else:
            # what it could not read stands at the end, and may be a key: it has no place in a log
            detail = [_BYTES.split(line)[0] for line in (message or "").splitlines()[:1]]
            error = BadRequest(
                "this is no HTTP request that can be read"
                + "".join(f": {line[:120]}" for line in detail if line.isprintable())
            )
            self._report(
                "request.refused", code=error.code, detail=error.message, remote=request.remote
            )
            body = error.body()
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = web.Response(
            status=status,
            text=ErrorReply(error=body).model_dump_json(),
            content_type="application/json",
            headers={hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: "aegis-control"},
        )
        response.force_close()
        return response


def used(request: web.BaseRequest) -> None:
    """A request has come: its connection is the last to give way to others."""
    if isinstance(request.protocol, Desk):
        request.protocol.connections.used(request.protocol)


def keep(request: web.BaseRequest) -> None:
    """The caller has proven who it is and stays for long: its connection gives way to none."""
    if isinstance(request.protocol, Desk):
        request.protocol.connections.proven(request.protocol)


def _raw(error: AegisError, status: HTTPStatus) -> bytes:
    """An answer for who has not asked yet."""
    body = ErrorReply(error=error.body()).model_dump_json().encode()
    retry = ""
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        retry = f"Retry-After: {error.facts.get('retry_after_s', RETRY_AFTER_S)}\r\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"{retry}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
