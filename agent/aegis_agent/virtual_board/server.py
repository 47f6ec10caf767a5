# SPDX-License-Identifier: GPL-2.0-or-later
"""
The board's port as a Unix socket, for `virtual://` URLs: data, DTR, RTS, break and the rate.

`aegis_agent.serial_urls.wire` has the words. A second program is refused and told who holds
the port. A client that is cut off (unplugged, or it breaks the protocol) sees its end.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Final

import structlog

from aegis_agent.serial_urls import wire
from aegis_agent.virtual_board.control_words import Holder
from aegis_agent.virtual_board.port import Port
from aegis_agent.virtual_board.unix_socket import close_clients, listen, peer_of

log = structlog.get_logger()

HELLO_DEADLINE_S: Final = 5.0
HANDOVER_S: Final = 0.25
# Little in the kernel: what a slow reader has not taken is ours to count, and to drop.
SEND_BUFFER_BYTES: Final = 16_384
MAX_BAUD: Final = 10_000_000


class PortServer:
    """Serves `port` at `path`: `open()`, then `serve()` until it is canceled."""

    def __init__(self, port: Port, path: Path) -> None:
        self._port = port
        self._path = path
        self._listener: socket.socket | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def open(self) -> None:
        self._listener = listen(self._path)

    async def serve(self) -> None:
        server = await asyncio.start_unix_server(self._serve_client, sock=self._listener)
        try:
            await server.serve_forever()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            await close_clients(self._clients)

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("served outside of a task")
        self._clients[task] = writer
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            del self._clients[task]
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HELLO_DEADLINE_S):
            head = await reader.readexactly(wire.HELLO.size)
        magic, bits, baud = wire.HELLO.unpack(head)
        if magic != wire.MAGIC or not 0 < baud <= MAX_BAUD:
            refusal, text = wire.Verdict.UNKNOWN_PROTOCOL, "it speaks another version"
        else:
            await self._port.until_free(HANDOVER_S)
            refusal, text = wire.Verdict.BUSY, self._port.refusal() or ""
        if text:
            log.warning("port.refused", reason=text)
            writer.write(wire.verdict(refusal, text))
            async with asyncio.timeout(HELLO_DEADLINE_S):
                await writer.drain()
                await reader.read(1)  # the client has read it and closes
            return
        pid, program = peer_of(writer)
        holder = Holder(by="socket", pid=pid, program=program)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES
        )
        writer.write(wire.verdict(wire.Verdict.YOURS))
        self._port.take(holder, _SocketOutlet(writer), wire.lines_from(bits), baud)
        try:
            await self._take_frames(reader)
        finally:
            self._port.release(holder)

    async def _take_frames(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind, length = wire.FRAME.unpack(await reader.readexactly(wire.FRAME.size))
            payload = await reader.readexactly(length)
            if kind == wire.Kind.DATA:
                await self._port.receive(payload)
            elif kind == wire.Kind.LINES and length == 1:
                self._port.set_lines(wire.lines_from(payload[0]))
            elif kind == wire.Kind.BAUD and length == 4:
                (baud,) = struct.unpack(">I", payload)
                self._port.set_baud(min(baud, MAX_BAUD))
            else:
                log.warning("port.frame_refused", kind=kind, length=length)
                return


class _SocketOutlet:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(data)

    def waiting_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()
