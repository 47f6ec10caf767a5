"""
The port of a virtual board, for pyserial: `virtual:///path/of/its/socket`.

It behaves like a port with a cable: DTR, RTS, break and the rate reach the board; one program
holds it at a time (a second one is told who has it, errno EBUSY); a board that was pulled out
ends reads and writes with `SerialException`. DTR and RTS set before `open()` arrive with the
opening itself, so it does not reset the board.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import termios
import threading
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from serial.serialutil import (
    PortNotOpenError,
    SerialBase,
    SerialException,
    SerialTimeoutException,
    Timeout,
)

from aegis_agent.serial_urls import wire

OPEN_DEADLINE_S: Final = 5.0
GONE: Final = "the virtual board is gone: it was unplugged, or its process has ended"


class Serial(SerialBase):
    """A serial port over the socket of a virtual board; for the contract see pyserial."""

    _socket: socket.socket | None = None
    BAUDRATES = (*SerialBase.BAUDRATES, 1_500_000, 2_000_000, 3_000_000, 4_000_000)

    def open(self) -> None:
        if self.port is None:
            raise SerialException("Port must be configured before it can be used.")
        if self.is_open:
            raise SerialException("Port is already open.")
        self._unsent = bytearray()
        self._send_lock = threading.Lock()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(OPEN_DEADLINE_S)
            link.connect(socket_path(self.port))
            link.sendall(wire.hello(self._lines(), self.baudrate))
            _read_verdict(link, self.port)
            link.setblocking(False)
        except OSError as exc:
            link.close()
            if isinstance(exc, SerialException):
                raise
            raise SerialException(
                exc.errno, f"could not open port {self.port}: {exc.strerror or exc}"
            ) from exc
        self._wake_reader, self._waker = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._waker, False)
        self._told_baud = self.baudrate
        self._socket = link
        self.is_open = True

    def close(self) -> None:
        link, self._socket = self._socket, None
        self.is_open = False
        if link is None:
            return
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        link.close()
        os.close(self._waker)
        os.close(self._wake_reader)

    def fileno(self) -> int:
        return self._open_socket().fileno()

    # --- bytes ---

    @property
    def in_waiting(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self._open_socket(), termios.FIONREAD, count)
        return count[0]

    @property
    def out_waiting(self) -> int:
        self._open_socket()
        return len(self._unsent)

    def read(self, size: int = 1, /) -> bytes:
        link = self._open_socket()
        got = bytearray()
        timeout = _timer(self.timeout)
        while len(got) < size:
            if not self._wait_readable(link, timeout.time_left()):
                break
            try:
                part = link.recv(size - len(got))
            except BlockingIOError:
                continue
            except OSError as exc:
                raise SerialException(exc.errno, GONE) from exc
            if not part:
                if got:
                    break  # what came before the end is not lost: the next read tells
                raise SerialException(errno.EIO, GONE)
            got += part
            if timeout.expired():
                break
        return bytes(got)

    def write(self, data: Any, /) -> int:
        payload = bytes(memoryview(data))
        self._send(wire.data_frames(payload))
        return len(payload)

    def flush(self) -> None:
        """Wait until what was written has left this process (at most the write time-out)."""
        self._send(b"")

    def reset_input_buffer(self) -> None:
        link = self._open_socket()
        try:
            while link.recv(65_536):
                pass
        except BlockingIOError:
            pass
        except OSError as exc:
            raise SerialException(exc.errno, GONE) from exc

    def reset_output_buffer(self) -> None:
        """Do nothing: what was written is on its way already."""
        self._open_socket()

    def cancel_read(self) -> None:
        """Let a `read` that waits in another thread return what it has."""
        if self.is_open:
            os.write(self._waker, b"x")

    # --- settings and lines ---

    def _reconfigure_port(self, *_: object, **__: object) -> None:
        # pyserial calls this for every setting; time-outs change with each command of esptool.
        if self.baudrate != self._told_baud:
            self._send(wire.baud_frame(self.baudrate))
            self._told_baud = self.baudrate

    def _update_dtr_state(self) -> None:
        self._send(wire.lines_frame(self._lines()))

    def _update_rts_state(self) -> None:
        self._send(wire.lines_frame(self._lines()))

    def _update_break_state(self) -> None:
        self._send(wire.lines_frame(self._lines()))

    def _lines(self) -> wire.Lines:
        return wire.Lines(bool(self.dtr), bool(self.rts), bool(self.break_condition))

    # A board has a receiver and a transmitter and no line back: ready, and never ringing.

    @property
    def cts(self) -> bool:
        self._open_socket()
        return True

    @property
    def dsr(self) -> bool:
        self._open_socket()
        return True

    @property
    def cd(self) -> bool:
        self._open_socket()
        return True

    @property
    def ri(self) -> bool:
        self._open_socket()
        return False

    # --- the socket ---

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise PortNotOpenError()
        return self._socket

    def _wait_readable(self, link: socket.socket, timeout_s: float | None) -> bool:
        try:
            ready, _, _ = select.select([link.fileno(), self._wake_reader], [], [], timeout_s)
        except (OSError, ValueError) as exc:  # closed by another thread
            raise PortNotOpenError() from exc
        if self._wake_reader in ready:
            os.read(self._wake_reader, 1024)
            return False
        return bool(ready)

    def _send(self, frames: bytes) -> None:
        """
        Send `frames` in order and whole, or keep the rest for the next call.

        A frame cut in the middle would shift every later one, so a write that times out
        leaves its rest in `_unsent`, as a port leaves it in the driver.
        """
        link = self._open_socket()
        timeout = _timer(self.write_timeout)
        with self._send_lock:
            self._unsent += frames
            while self._unsent:
                try:
                    sent = link.send(self._unsent)
                    del self._unsent[:sent]
                    continue
                except BlockingIOError:
                    pass
                except OSError as exc:
                    raise SerialException(exc.errno, GONE) from exc
                if timeout.is_non_blocking:
                    return
                _, ready, _ = select.select([], [link], [], timeout.time_left())
                if not ready:
                    raise SerialTimeoutException("Write timeout")


def _timer(timeout_s: float | None) -> Timeout:
    return Timeout(timeout_s)  # type: ignore[arg-type]  # the stubs forget that None waits for ever


def socket_path(url: str) -> str:
    """Return the path that a `virtual:` URL names; raise `SerialException` when it is none."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "virtual" or parts.netloc or parts.query or not path.startswith("/"):
        raise SerialException(
            errno.EINVAL, f"{url!r} is no port of a virtual board: expected virtual:///path"
        )
    return path


def _read_verdict(link: socket.socket, url: str) -> None:
    head = _read_exactly(link, wire.VERDICT.size)
    magic, what, length = wire.VERDICT.unpack(head)
    if magic != wire.MAGIC:
        raise SerialException(
            errno.EPROTO, f"could not open port {url}: what listens there is no virtual board"
        )
    text = _read_exactly(link, length).decode(errors="replace")
    if what == wire.Verdict.BUSY:
        raise SerialException(errno.EBUSY, f"could not open port {url}: {text}")
    if what != wire.Verdict.YOURS:
        raise SerialException(errno.EPROTO, f"could not open port {url}: {text}")


def _read_exactly(link: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = link.recv(size - len(got))
        if not part:
            raise SerialException(errno.EPROTO, "the board closed its port while it was opened")
        got += part
    return bytes(got)
