"""
Opening, resetting and closing serial ports, with every failure given its name.

All of it blocks: call it in a thread. DTR and RTS are set before a port is opened, so that opening
resets nothing; EN is low while RTS and not DTR, IO0 is low while DTR and not RTS (ESP32 auto-reset
circuit, as on Espressif's development kits).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import termios
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import serial
from aegis_protocol.failures.board import BoardBusy, BoardError, BoardGone, NoResetLines

from aegis_agent.serial_urls import register

READ_TIMEOUT_S: Final = 0.02
WRITE_TIMEOUT_S: Final = 0.2
_RESET_PULSE_S: Final = 0.1
_GONE: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENXIO,
        errno.ENODEV,
        errno.EIO,
        errno.EBADF,
        errno.EPIPE,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
    }
)


def is_present(port: str) -> bool:
    """Tell whether `port` is there now; a port on the network counts as present."""
    scheme = _scheme(port)
    if scheme == "virtual":
        return Path(unquote(urlsplit(port).path)).is_socket()
    if scheme:
        return True
    try:
        return stat.S_ISCHR(Path(port).stat().st_mode)
    except OSError:
        return False


def has_modem_lines(port: str) -> bool:
    """Tell whether `port` has DTR and RTS; a plain pty (ENOTTY) and a bare socket have none."""
    scheme = _scheme(port)
    if scheme:
        return scheme != "socket"
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.ioctl(fd, termios.TIOCMGET, b"\0\0\0\0")
    except OSError as exc:
        return exc.errno not in (errno.ENOTTY, errno.EINVAL)
    finally:
        os.close(fd)
    return True


def open_port(port: str, baud: int) -> Any:
    """
    Open `port` for this process alone, without resetting the board; close it by `close_port`.

    Raises BoardGone, BoardBusy, BoardError (no permission, a rate that the port does not have).
    """
    register()
    try:
        device = serial.serial_for_url(port, do_not_open=True)
        device.baudrate = baud
        device.timeout = READ_TIMEOUT_S
        if _scheme(port) != "rfc2217":  # which knows none, and sends with a limit of its own
            device.write_timeout = WRITE_TIMEOUT_S
        device.dtr = False
        device.rts = False
        device.exclusive = True
        device.open()
    except (OSError, ValueError, termios.error) as exc:
        raise named(exc, port) from exc
    _ioctl(device, termios.TIOCEXCL)  # no one but root opens it a second time: tty_ioctl(4)
    return device


def close_port(device: Any) -> None:
    """Close `device`, whatever state it is in. What it has not sent is dropped."""
    # On a pty the claim would outlive our descriptor; and a close waits half a minute for a
    # terminal that does not take what was written.
    _ioctl(device, termios.TIOCNXCL)
    with contextlib.suppress(Exception):
        if not _scheme(str(device.port)):
            device.reset_output_buffer()
    with contextlib.suppress(Exception):
        device.close()


def pulse_reset(device: Any) -> None:
    """
    Hold EN low for 100 ms and let go: the board boots what is in its flash.

    Raises NoResetLines; BoardGone when the port went away under it, as some do by a reset.
    """
    port = str(device.port)
    if _scheme(port) == "socket":
        raise NoResetLines(f"{port} is a bare socket: the board can't be reset through it")
    try:
        device.dtr = False
        device.rts = True
        time.sleep(_RESET_PULSE_S)
        device.rts = False
    except (OSError, termios.error) as exc:
        if _number(exc) in (errno.ENOTTY, errno.EINVAL):
            raise NoResetLines(
                f"{port} has no modem lines: the board can't be reset through it"
            ) from exc
        raise named(exc, port) from exc


def reset_board(port: str) -> None:
    """Open `port`, reset the board behind it, close it. Raises what those raise."""
    device = open_port(port, 115_200)
    try:
        pulse_reset(device)
    finally:
        close_port(device)


def named(exc: Exception, port: str) -> BoardError:
    """Return the failure that `exc` is, by its errno (pyserial keeps it) or its words."""
    number, text = _number(exc), str(exc)
    if number == errno.EBUSY or "exclusively lock" in text:
        return BoardBusy(f"the port {port} is in use")
    if number in (errno.EACCES, errno.EPERM):
        return BoardError(
            f"the agent may not open {port}",
            remedy="Add the agent's user to the port's group (usually dialout).",
        )
    if number in _GONE:
        return BoardGone(f"the port {port} is gone")
    if isinstance(exc, serial.SerialException):
        return BoardGone(f"the port {port} is gone: {text}")
    return BoardError(f"the port {port} can't be used: {text}")


def _number(exc: Exception) -> int | None:
    if isinstance(exc, termios.error):  # no OSError, and yet from errno
        return exc.args[0] if exc.args and isinstance(exc.args[0], int) else None
    return getattr(exc, "errno", None)


def _scheme(port: str) -> str:
    return port.partition("://")[0] if "://" in port else ""


def _ioctl(device: Any, request: int) -> None:
    if not _scheme(str(device.port)):
        with contextlib.suppress(Exception):
            fcntl.ioctl(device.fileno(), request)
