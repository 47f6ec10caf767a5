"""Boards on USB: which serial ports look like boards, and under which stable key."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from serial.tools import list_ports

log = structlog.get_logger()

_NO_SERIAL: Final = frozenset({"", "0001", "0000", "000000000000"})
"""What adapters report that have no serial number of their own (CP210x, CH340)."""


@dataclass(frozen=True)
class UsbBoard:
    """key: stable while the board stays in its socket; port: where it is just now."""

    key: str
    port: str
    description: str


def usb_boards() -> tuple[UsbBoard, ...]:
    """
    The USB serial ports of this machine. Blocks for some milliseconds.

    The key is made of vendor, product and serial number; of the socket, where a board has no
    serial number, or has that of another one that is there too.
    """
    found = [port for port in list_ports.comports() if port.vid is not None]
    numbers = Counter((port.vid, port.pid, port.serial_number) for port in found)
    boards = []
    for port in sorted(found, key=lambda port: str(port.device)):
        number = port.serial_number or ""
        is_own = number not in _NO_SERIAL and numbers[port.vid, port.pid, number] == 1
        where = number if is_own else f"at-{port.location or port.name}"
        key = f"usb-{port.vid:04x}-{port.pid or 0:04x}-{re.sub(r'[^A-Za-z0-9_.:-]', '_', where)}"
        words = [word for word in (port.manufacturer, port.product) if word]
        boards.append(UsbBoard(key[:80], port.device, " ".join(words)[:200]))
    return tuple(boards)


async def changes(poll_s: float) -> AsyncGenerator[None, None]:
    """Yield at once, then whenever serial devices may have changed: at each event, or `poll_s`."""
    changed = asyncio.Event()
    with contextlib.ExitStack() as stack:
        _listen(changed, stack)
        while True:
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll_s):
                    await changed.wait()
            changed.clear()


def _listen(changed: asyncio.Event, stack: contextlib.ExitStack) -> None:
    """Wake `changed` by udev's events, where this machine has them."""
    try:
        import pyudev

        monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context())
        monitor.filter_by("tty")
        monitor.start()
    except (ImportError, OSError) as exc:
        log.info("udev.unavailable", detail=str(exc))
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        while monitor.poll(timeout=0) is not None:
            changed.set()

    loop.add_reader(monitor.fileno(), read)
    stack.callback(loop.remove_reader, monitor.fileno())
