# SPDX-License-Identifier: GPL-2.0-or-later
"""
The board's port as a pty behind a link, for any program that opens a serial port.

A pty has no modem lines. So the board goes into its loader when a host says SYNC, and leaves
it when the pty is closed. (Or lines come by a datagram socket beside it, a byte each time: bit
0 DTR, bit 1 RTS. That is how tests give a pty the lines of a real port.)
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import tty
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.failures.virtual_board import BadBoardSetting, BoardAddressTaken

from aegis_agent.serial_urls.wire import lines_from
from aegis_agent.virtual_board import slip
from aegis_agent.virtual_board.control_words import BoardState, Holder
from aegis_agent.virtual_board.loader_words import Op
from aegis_agent.virtual_board.port import DEFAULT_BAUD, Port
from aegis_agent.virtual_board.rom import SYNC_PAYLOAD

log = structlog.get_logger()

# Nothing tells a pty's master that somebody opened it; that it is closed shows as a hang-up.
OPEN_POLL_S: Final = 0.05
READ_BYTES: Final = 16_384
TCGETS2: Final = 0x802C542A
_TERMIOS2: Final = struct.Struct("4IB19s2I")


class PtyWay:
    """
    Offers `port` behind the link `link`: `open()`, then `serve()` until it is canceled.

    lines_path   where lines come as datagrams; None for a plain pty
    """

    def __init__(self, port: Port, link: Path, lines_path: Path | None = None) -> None:
        self._port = port
        self._link = link
        self._lines_path = lines_path
        self._lines_socket: socket.socket | None = None
        self._master = -1
        self._waiting = bytearray()
        self._holder: Holder | None = None
        self._packets = slip.Decoder()
        self._ready = asyncio.Event()

    def open(self) -> None:
        """
        Make the pty and its link.

        Raises
        ------
        BoardAddressTaken   the link's path is taken by something that is no link
        BadBoardSetting     no link or socket can be made there
        """
        if self._link.exists() and not self._link.is_symlink():
            raise BoardAddressTaken(f"{self._link} exists and is no link.")
        self._master, slave = os.openpty()
        try:
            tty.setraw(slave)
            name = os.ttyname(slave)
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        try:
            if self._lines_path is not None:
                self._lines_path.unlink(missing_ok=True)
                self._lines_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._lines_socket.bind(os.fspath(self._lines_path))
                self._lines_socket.setblocking(False)
            new = self._link.with_name(f".{self._link.name}.{os.getpid()}")
            new.unlink(missing_ok=True)
            new.symlink_to(name)
            new.replace(self._link)
        except OSError as exc:
            self._close()
            raise BadBoardSetting(f"No pty can be offered at {self._link}: {exc}.") from exc

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        if self._lines_socket is not None:
            loop.add_reader(self._lines_socket, self._take_lines)
        try:
            while True:
                await self._until_open()
                await self._talk()
        finally:
            self._release()
            if self._lines_socket is not None:
                loop.remove_reader(self._lines_socket)
            self._link.unlink(missing_ok=True)
            self._close()

    async def _until_open(self) -> None:
        while not self._is_open_elsewhere():  # noqa: ASYNC110  # the kernel has no event for it
            await asyncio.sleep(OPEN_POLL_S)

    # --- a host that has the pty open ---

    async def _talk(self) -> None:
        self._take_port()
        if self._holder is None:
            notice = f"[virtual board] {self._port.refusal()}\r\n"
            self._push(notice.encode())
        loop = asyncio.get_running_loop()
        loop.add_reader(self._master, self._ready.set)
        try:
            while (data := await self._read()) is not None:
                if self._holder is None:
                    self._take_port()  # whoever had it may be gone by now
                if self._holder is not None:
                    self._port.set_baud(self._host_baud())
                    await self._deliver(data)
        finally:
            loop.remove_reader(self._master)
            self._release()
            termios.tcflush(self._master, termios.TCIOFLUSH)  # not for the next one who opens it

    def _take_port(self) -> None:
        if self._port.refusal() is None:
            self._holder = Holder(by="pty")
            self._port.take(self._holder, self, None, self._host_baud())

    def _release(self) -> None:
        holder, self._holder = self._holder, None
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._master)
        self._waiting.clear()
        if holder is None:
            return
        board = self._port.board
        self._port.release(holder)
        if self._lines_socket is None and board is not None:
            board.leave_loader()

    async def _read(self) -> bytes | None:
        """Return what the host wrote, or None when it has closed the pty."""
        while True:
            self._ready.clear()
            try:
                return os.read(self._master, READ_BYTES)
            except BlockingIOError:
                await self._ready.wait()
            except OSError as exc:
                if exc.errno == errno.EIO:
                    return None
                raise

    async def _deliver(self, data: bytes) -> None:
        board = self._port.board
        if self._lines_socket is None and board is not None and board.state is BoardState.RUNNING:
            syncs = [packet for packet in self._packets.feed(data) if _is_sync(packet)]
            if syncs:
                board.enter_loader()
                data = slip.encode(syncs[-1])
        await self._port.receive(data)

    # --- the outlet that the port writes to ---

    def write(self, data: bytes) -> None:
        self._waiting += data
        self._flush()

    def waiting_bytes(self) -> int:
        return len(self._waiting)

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        sent = self._push(bytes(self._waiting))
        del self._waiting[:sent]
        if self._waiting:
            loop.add_writer(self._master, self._flush)
        else:
            loop.remove_writer(self._master)

    def _push(self, data: bytes) -> int:
        try:
            return os.write(self._master, data) if data else 0
        except BlockingIOError:
            return 0
        except OSError:  # closed; the reader will see it too
            return len(data)

    # --- the pty ---

    def _is_open_elsewhere(self) -> bool:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        events = dict(poll.poll(0)).get(self._master, 0)
        return not events & select.POLLHUP or bool(events & select.POLLIN)

    def _host_baud(self) -> int:
        """Return the rate that the host has set; the master sees its settings exactly."""
        raw = fcntl.ioctl(self._master, TCGETS2, bytes(_TERMIOS2.size))
        return int(_TERMIOS2.unpack(raw)[-1]) or DEFAULT_BAUD

    def _take_lines(self) -> None:
        if self._lines_socket is None:
            return
        bits = self._lines_socket.recv(16)
        by_socket = self._port.holder is not None and self._holder is None
        if len(bits) == 1 and not by_socket:
            self._port.set_lines(lines_from(bits[0]))

    def _close(self) -> None:
        if self._lines_socket is not None:
            self._lines_socket.close()
            self._lines_socket = None
            if self._lines_path is not None:
                self._lines_path.unlink(missing_ok=True)
        os.close(self._master)


def _is_sync(packet: bytes) -> bool:
    return packet[:2] == bytes((0, Op.SYNC)) and packet[8:] == SYNC_PAYLOAD
