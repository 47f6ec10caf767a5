"""
Opening and resetting serial ports, with every failure given its name.

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
from aegis_protocol.failures.board import BoardBusy, BoardError, BoardGone

from aegis_agent.serial_urls import register

READ_TIMEOUT_S: Final = 0.02
WRITE_TIMEOUT_S: Final = 2.0
_RESET_PULSE_S: Final = 0.1


def is_present(port: str) -> bool:
    """Tell whether `port` is there now; a port on the network counts as present."""
    scheme = urlsplit(port).scheme if "://" in port else ""
    if scheme == "virtual":
        return Path(unquote(urlsplit(port).path)).is_socket()
    if scheme:
        return True
    try:
        return stat.S_ISCHR(Path(port).stat().st_mode)
    except OSError:
        return False


def has_modem_lines(port: str) -> bool:
    """Tell whether `port` has DTR and RTS; a plain pty has none (ENOTTY)."""
    if "://" in port:
        return not port.startswith("socket://")
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
    Open `port` for this process alone, without resetting the board.

    Raises BoardGone, BoardBusy, BoardError (no permission, a rate that the port does not have).
    """
    register()
    try:
        device = serial.serial_for_url(port, do_not_open=True)
        device.baudrate = baud
        device.timeout = READ_TIMEOUT_S
        device.write_timeout = WRITE_TIMEOUT_S
        device.dtr = False
        device.rts = False
        with contextlib.suppress(ValueError, AttributeError):
            device.exclusive = True
        device.open()
        _claim(device)
    except (OSError, ValueError, termios.error) as exc:
        raise named(exc, port) from exc
    return device


def pulse_reset(device: Any) -> None:
    """Hold EN low for 100 ms and let go: the board boots what is in its flash."""
    try:
        device.dtr = False
        device.rts = True
        time.sleep(_RESET_PULSE_S)
        device.rts = False
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EINVAL):
            raise BoardError(
                "this port has no modem lines, so the board can't be reset through it",
                remedy="Press the board's reset button, or use a port with DTR and RTS.",
            ) from exc
        raise named(exc, str(device.port)) from exc


def named(exc: Exception, port: str) -> BoardError:
    """Return the failure that `exc` is, by its errno (pyserial keeps it) or its words."""
    number = getattr(exc, "errno", None)
    text = str(exc)
    if number == errno.EBUSY or "exclusively lock" in text:
        return BoardBusy(f"the port {port} is in use")
    if number == errno.EACCES:
        return BoardError(
            f"the agent may not open {port}",
            remedy="Add the agent's user to the port's group (usually dialout).",
        )
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO, errno.ECONNREFUSED):
        return BoardGone(f"the port {port} is gone")
    if isinstance(exc, serial.SerialException):
        return BoardGone(f"the port {port} is gone: {text}")
    return BoardError(f"the port {port} can't be used: {text}")


def _claim(device: Any) -> None:
    """TIOCEXCL: no one but root opens the device a second time (tty_ioctl(4))."""
    if "://" in str(device.port):
        return
    with contextlib.suppress(OSError):
        fcntl.ioctl(device.fileno(), termios.TIOCEXCL)
