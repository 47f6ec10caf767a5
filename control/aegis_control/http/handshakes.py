"""
Where TLS connections come in: they count from the moment on at which they are accepted.

The event loop's own server tells of a connection once it has shaken hands. Until then it would be
open and count nowhere, and whoever opens many and says nothing would take up every file that this
process may have.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aegis_control.http.connections import Connection, Connections
from aegis_control.log import get_logger

log = get_logger("http")

_HANDSHAKE_S: Final = 10.0
_AFTER_TROUBLE_S: Final = 1.0


class Handshakes:
    """Those under way, with their sockets."""

    def __init__(self, connections: Connections, tls: ssl.SSLContext) -> None:
        self._connections = connections
        self._tls = tls
        self._sockets: dict[Connection, socket.socket] = {}

    def __contains__(self, desk: Connection) -> bool:
        return desk in self._sockets

    def give_up(self, desk: Connection) -> None:
        """Cut a connection that shakes hands."""
        _cut(self._sockets[desk])

    @asynccontextmanager
    async def accepting(
        self, sock: socket.socket, backlog: int, desk: Callable[[], Any]
    ) -> AsyncIterator[None]:
        """
        Take connections in on a bound socket until the block ends, each with a new `desk`: an
        asyncio protocol that is a `Connection`.
        """
        sock.listen(backlog)
        accepting = asyncio.create_task(self._accept(sock, desk), name="handshakes")
        try:
            yield
        finally:
            accepting.cancel()
            with suppress(asyncio.CancelledError):
                await accepting
            for connected in self._sockets.values():  # of tasks that had not begun
                connected.close()

    async def _accept(self, sock: socket.socket, make: Callable[[], Any]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    connected, address = await asyncio.get_running_loop().sock_accept(sock)
                    desk = make()
                except OSError as exc:
                    log.error("connections.not_accepted", detail=exc.strerror)  # noqa: TRY400
                    await asyncio.sleep(_AFTER_TROUBLE_S)
                    continue
                if self._connections.opened(desk, str(address[0])) is None:
                    self._sockets[desk] = connected
                    group.create_task(self._shake(desk, connected))
                else:  # to say so would take a handshake
                    connected.close()

    async def _shake(self, desk: Any, connected: socket.socket) -> None:
        done = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: desk,
                connected,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_S,
            )
            done = True
        except OSError as exc:  # as TLS's errors and time-outs are
            log.debug("handshake.failed", detail=str(exc)[:200])
        except Exception:  # one that we did not expect must not end them all
            log.exception("handshake.crashed")
        finally:
            del self._sockets[desk]
            if not done:
                self._connections.closed(desk)
                _cut(connected)
                connected.close()


def _cut(connected: socket.socket) -> None:
    """End it whoever has it: its transport, if there is one, finds it at its end."""
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
