# SPDX-License-Identifier: GPL-2.0-or-later
"""One board, whole: opens its flash, plugs it in, says that it is ready, serves until stopped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from aegis_agent.virtual_board.board import Board
from aegis_agent.virtual_board.boot import boot, require_emulator
from aegis_agent.virtual_board.chips import Chip
from aegis_agent.virtual_board.control import Bell, ControlServer
from aegis_agent.virtual_board.control_words import CONTROL_SUFFIX, FaultName, Ready
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import NorFlash, open_flash
from aegis_agent.virtual_board.plug import PortPlug, Way
from aegis_agent.virtual_board.port import Port
from aegis_agent.virtual_board.pty import PtyWay
from aegis_agent.virtual_board.server import PortServer

log = structlog.get_logger()

# Locally administered, so that no board of a manufacturer ever has the same address.
MAC_PREFIX: Final = b"\x02\xae"


@dataclass(frozen=True)
class BoardSettings:
    """
    What makes a board.

    mac            6 bytes; None: from the flash file's path, so that it stays, else by chance
    flash_size     in bytes; None: the file's, or the chip's usual one
    pty_lines      a datagram socket that gives the pty modem lines
    cpu_budget     the part of one core that the firmware may take, 0 to 1
    is_json        say `Ready` as one JSON line instead of words
    """

    chip: Chip
    listen: Path
    pty: Path | None
    pty_lines: Path | None
    flash_file: Path | None
    flash_size: int | None
    mac: bytes | None
    revision: str
    faults: tuple[tuple[FaultName, float | None], ...]
    is_paced: bool
    cpu_budget: float
    is_json: bool
    ends_with_stdin: bool


async def run_board(settings: BoardSettings) -> None:
    """
    Run one board until SIGINT, SIGTERM or SIGHUP (or, if asked, until stdin closes).

    Raises
    ------
    EmulatorMissing    the chip's code needs Unicorn
    BadBoardSetting, BoardAddressTaken, FlashFileUnusable   before anything is offered
    """
    require_emulator(settings.chip.name)
    with open_flash(settings.flash_size, settings.chip.flash_size, settings.flash_file) as flash:
        await _run_with(settings, flash)


async def _run_with(settings: BoardSettings, flash: NorFlash) -> None:
    mac = settings.mac or default_mac(settings.flash_file)
    faults = Faults()
    for name, amount in settings.faults:
        faults.set(name, amount)
    bell = Bell()
    port = Port(
        faults,
        is_paced=settings.is_paced,
        on_unplug=lambda: plug.unplug(),
        on_change=bell.ring,
    )
    board = port.board = Board(
        settings.chip,
        flash,
        mac=mac,
        revision=settings.revision,
        faults=faults,
        boot=boot,
        cpu_budget=settings.cpu_budget,
        send=port.transmit,
        on_change=bell.ring,
        on_reset=lambda: plug.vanish_for_reset(),
    )
    ways: list[Way] = [PortServer(port, settings.listen)]
    if settings.pty is not None:
        ways.append(PtyWay(port, settings.pty, settings.pty_lines))
    plug = PortPlug(port, board, faults, ways)
    control_path = settings.listen.with_name(settings.listen.name + CONTROL_SUFFIX)
    control = ControlServer(control_path, board, faults, plug, port.status, bell)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)  # a board under nohup stays
    if settings.ends_with_stdin:
        loop.add_reader(0, _end_with_stdin, loop, stop)
    is_ready = asyncio.Event()
    control.open()
    async with asyncio.TaskGroup() as group:
        serving = [
            group.create_task(control.serve()),
            group.create_task(plug.run(on_ready=is_ready)),
        ]
        await is_ready.wait()
        _announce(settings, flash, mac, control_path)
        await stop.wait()
        for task in serving:
            task.cancel()
    log.info("board.stopped")


def _end_with_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(0, 1024):
        loop.remove_reader(0)
        stop.set()


def _announce(settings: BoardSettings, flash: NorFlash, mac: bytes, control: Path) -> None:
    ready = Ready(
        url="virtual://" + quote(os.fspath(settings.listen)),
        socket=os.fspath(settings.listen),
        control=os.fspath(control),
        pty=os.fspath(settings.pty) if settings.pty else None,
        chip=settings.chip.name,
        mac=mac.hex(":"),
        revision=settings.revision,
        flash_size_bytes=flash.size_bytes,
        pid=os.getpid(),
    )
    if settings.is_json:
        text = ready.model_dump_json()
    else:
        text = (
            f"A virtual {settings.chip.title} (revision v{ready.revision}), MAC {ready.mac}, "
            f"{flash.size_bytes // 1024} KiB of flash.\n  port  {ready.url}"
        )
        if ready.pty:
            text += f"\n  pty   {ready.pty}"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    log.info("board.plugged", chip=ready.chip, mac=ready.mac, url=ready.url, pty=ready.pty)


def default_mac(flash_file: Path | None) -> bytes:
    """Return an address for a board: the same one each time for the same flash file."""
    if flash_file is None:
        return MAC_PREFIX + secrets.token_bytes(4)
    digest = hashlib.sha256(os.fsencode(flash_file.resolve())).digest()
    return MAC_PREFIX + digest[:4]
