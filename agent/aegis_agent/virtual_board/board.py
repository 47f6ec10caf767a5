# SPDX-License-Identifier: GPL-2.0-or-later
"""
The board: which of its states it is in, and what runs.

EN rising latches IO0: low starts the ROM's loader, high boots what is flashed. A reset by
software keeps the latched choice; one by the watchdog reads the strap again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from aegis_agent.virtual_board.boot_text import ResetCause
from aegis_agent.virtual_board.chips import Chip
from aegis_agent.virtual_board.console import Console
from aegis_agent.virtual_board.control_words import BoardState
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import NorFlash
from aegis_agent.virtual_board.registers import Registers
from aegis_agent.virtual_board.reset_circuit import ResetCircuit
from aegis_agent.virtual_board.rom import Loader

log = structlog.get_logger()

MOVES: Final[Mapping[BoardState, frozenset[BoardState]]] = MappingProxyType(
    {
        BoardState.OFF: frozenset({BoardState.RESET}),
        BoardState.RESET: frozenset({BoardState.LOADER, BoardState.RUNNING, BoardState.OFF}),
        BoardState.LOADER: frozenset({BoardState.RESET, BoardState.OFF}),
        BoardState.RUNNING: frozenset({BoardState.RESET, BoardState.OFF}),
    }
)
REBOOT_PAUSE_S: Final = 0.2  # a firmware that dies at once reboots five times a second, not more
BAUD_TOLERANCE: Final = 0.04
WATCHDOG_S: Final = 0.1


class IllegalMove(Exception):
    """The table of states has no such move: a defect of the board's process."""


class Program(Protocol):
    """What runs after a boot from the flash."""

    def feed(self, data: bytes) -> None: ...

    def stop(self) -> None: ...


class Boot(Protocol):
    """Starts what is flashed, in a thread of its own."""

    def __call__(
        self,
        chip: str,
        flash: Callable[[int, int], bytes],
        *,
        uart_out: Callable[[bytes], None],
        mac: bytes,
        cpu_budget: float,
        on_restart: Callable[[], None],
        cause: ResetCause,
    ) -> Program: ...


class Board:
    """
    A powered or unpowered board. All methods belong to the loop's thread.

    send       takes what UART0 transmits
    on_change  is called after a change that a status shows
    on_reset   is called when EN has risen, before anything runs
    """

    def __init__(
        self,
        chip: Chip,
        flash: NorFlash,
        *,
        mac: bytes,
        revision: str,
        faults: Faults,
        boot: Boot,
        cpu_budget: float,
        send: Callable[[bytes], None],
        on_change: Callable[[], None],
        on_reset: Callable[[], None],
    ) -> None:
        self.chip = chip
        self.flash = flash
        self.mac = mac
        self.state = BoardState.OFF
        self.resets = 0
        self.boots = 0
        self._revision = revision
        self._faults = faults
        self._boot = boot
        self._cpu_budget = cpu_budget
        self._send = send
        self._on_change = on_change
        self._on_reset = on_reset
        self._circuit = ResetCircuit(self._fall, self._risen)
        self._latched_download = False
        self._loader: Loader | None = None
        self._program: Program | None = None
        self._console: Console | None = None
        self._restart_timer: asyncio.TimerHandle | None = None
        chip.efuses(mac, revision)  # a revision that can't be is said now, not at the first reset

    # --- power and lines ---

    def power_on(self) -> None:
        if self.state is BoardState.OFF:
            self._move(BoardState.RESET)
            self._rise(ResetCause.POWER_ON, is_download=False)

    def power_off(self) -> None:
        self._circuit.power_down()
        if self.state is not BoardState.OFF:
            self._halt()
            self._move(BoardState.OFF)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Take the host's lines, both at once, as its driver sets them."""
        if self.state is not BoardState.OFF:
            self._circuit.set_lines(dtr, rts)

    def reset(self, cause: ResetCause = ResetCause.POWER_ON) -> None:
        """Press and release the button that pulls EN low; IO0 is as the lines have it."""
        if self.state is not BoardState.OFF and self._circuit.is_high:
            self._halt_into_reset()
            self._rise(cause, is_download=self._circuit.is_io0_low)

    def enter_loader(self) -> None:
        """
        Be in the loader from now on, without a banner: for a host that has no lines and talks
        to the loader already.
        """
        if self.state is not BoardState.OFF:
            self._halt_into_reset()
            self._latched_download = True
            self.resets += 1
            self._move(BoardState.LOADER)
            self._start_loader()

    def leave_loader(self) -> None:
        if self.state is BoardState.LOADER:
            self._halt_into_reset()
            self._rise(ResetCause.POWER_ON, is_download=False)

    # --- UART0 ---

    @property
    def is_stub(self) -> bool:
        return self._loader is not None and self._loader.is_stub

    def receive(self, data: bytes, host_baud: int) -> None:
        """Take what the host sent at `host_baud`; at another rate than ours it is noise."""
        if self._loader is not None:
            if self._is_rate_wrong(host_baud):
                data = noise(data)
            self._loader.receive(data, host_baud)
        elif self._program is not None:
            self._program.feed(data)

    def transmitted(self, data: bytes, host_baud: int) -> bytes:
        """Return how `data`, which this board sends, arrives at a host that listens at its rate."""
        return noise(data) if self._is_rate_wrong(host_baud) else data

    def _is_rate_wrong(self, host_baud: int) -> bool:
        # Only the loaders' rate is known: firmware speaks at whatever rate the host has set.
        ours = self._loader.baud if self._loader is not None else None
        return ours is not None and abs(host_baud - ours) > BAUD_TOLERANCE * ours

    # --- what a loader can do: see `rom.Machine` ---

    def run_flash(self) -> None:
        self._halt_into_reset()
        self._start(ResetCause.SOFTWARE, is_download=False)

    def restart(self) -> None:
        self._halt_into_reset()
        self._start(ResetCause.SOFTWARE, is_download=self._latched_download)

    def watchdog_reset(self) -> None:
        """Let the watchdog bark in a moment: its host has still to lock its registers again."""
        if self._restart_timer is None:
            loop = asyncio.get_running_loop()
            self._restart_timer = loop.call_later(WATCHDOG_S, self.reset, ResetCause.WATCHDOG)

    # --- inside ---

    def _move(self, to: BoardState) -> None:
        if to not in MOVES[self.state]:
            raise IllegalMove(f"{self.state} -> {to}")
        log.debug("board.moved", was=self.state, now=to)
        self.state = to
        self._on_change()

    def _fall(self) -> None:
        self._halt_into_reset()

    def _risen(self, is_download: bool) -> None:
        self._rise(ResetCause.POWER_ON, is_download=is_download)

    def _rise(self, cause: ResetCause, *, is_download: bool) -> None:
        self._latched_download = is_download
        self._on_reset()
        self._start(cause, is_download=is_download)

    def _start(self, cause: ResetCause, *, is_download: bool) -> None:
        self.resets += 1
        if is_download:
            self._move(BoardState.LOADER)
            self._send(self.chip.download_banner.encode())
            self._start_loader()
        else:
            self.boots += 1
            self._move(BoardState.RUNNING)
            self._start_program(cause)
        self._on_change()

    def _start_loader(self) -> None:
        registers = Registers(self.chip, self.flash, self.mac, self._revision)
        self._loader = Loader(self.chip, registers, self.flash, self._faults, self, self._send)

    def _start_program(self, cause: ResetCause) -> None:
        loop = asyncio.get_running_loop()
        console = self._console = Console(loop, self._send)

        def on_restart() -> None:
            loop.call_soon_threadsafe(self._rebooted, console)

        self._program = self._boot(
            self.chip.name,
            self.flash.read,
            uart_out=console.write,
            mac=self.mac,
            cpu_budget=self._cpu_budget,
            on_restart=on_restart,
            cause=cause,
        )

    def _rebooted(self, console: Console) -> None:
        """The firmware of `console` reset its CPU; one that was stopped meanwhile has no say."""
        if console is self._console and self._restart_timer is None:
            loop = asyncio.get_running_loop()
            self._restart_timer = loop.call_later(REBOOT_PAUSE_S, self.restart)

    def _halt_into_reset(self) -> None:
        if self.state is not BoardState.RESET:
            self._halt()
            self._move(BoardState.RESET)

    def _halt(self) -> None:
        """Stop whatever runs; RAM is lost."""
        if self._restart_timer is not None:
            self._restart_timer.cancel()
            self._restart_timer = None
        if self._loader is not None:
            self._loader.is_silent = True  # it may be in the middle of what it was sent
            self._loader = None
        console, self._console = self._console, None
        if console is not None:
            console.close()
        program, self._program = self._program, None
        if program is not None:
            program.stop()


def noise(data: bytes) -> bytes:
    """Return what a receiver at another rate makes of `data`: bytes that mean nothing."""
    return data.translate(_NOISE)


_NOISE: Final = bytes(0xE0 if byte >> 1 | 0x80 == 0xC0 else byte >> 1 | 0x80 for byte in range(256))
