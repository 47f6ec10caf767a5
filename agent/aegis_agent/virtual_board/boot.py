# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a board does after a reset with IO0 high: boot from its flash, in a thread of its own.

The ROM and the bootloader are acted (`bootloader`). A RISC-V application then really executes
(`execution`); of an Xtensa one the board prints what its header and its descriptor say. A flash
that holds nothing to boot gives the chip's own complaint, again and again, at a low rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import structlog
from aegis_protocol.failures.virtual_board import BadBoardSetting, EmulatorMissing

from aegis_agent.virtual_board.boot_text import ResetCause
from aegis_agent.virtual_board.bootloader import Refused, find_app
from aegis_agent.virtual_board.flash import OutOfFlash
from aegis_agent.virtual_board.image import Image, ReadFlash
from aegis_agent.virtual_board.silicon import SILICON, Silicon
from aegis_agent.virtual_board.transmitter import Transmitter

log = structlog.get_logger()

STOP_DEADLINE_S: Final = 2.0
_COMPLAINT_PAUSE_S: Final = 0.3
_RETRY_PAUSE_S: Final = 2.0


class Running(Protocol):
    """A booted board."""

    def feed(self, data: bytes) -> None:
        """Take bytes from the host for UART0, from any thread; an overrun is lost."""

    def stop(self) -> None:
        """Return when the CPU's thread has ended, or after `STOP_DEADLINE_S`."""


def boot(
    chip: str,
    flash: Callable[[int, int], bytes],
    *,
    uart_out: Callable[[bytes], None],
    mac: bytes,
    cpu_budget: float = 0.5,
    on_restart: Callable[[], None],
    cause: ResetCause = ResetCause.POWER_ON,
) -> Running:
    """
    Start what is in the flash and return at once.

    flash       gives bytes by offset and size; called in the CPU's thread
    uart_out    takes what UART0 transmits; called in the CPU's thread, nothing after `stop`
    mac         6 bytes, for the eFuse registers
    cpu_budget  share of a core that an image which spins may take
    on_restart  called once, at the end of the CPU's thread, when the firmware reset the chip; the
                caller boots again, and paces it
    cause       what the ROM says why the chip starts

    Raises
    ------
    BadBoardSetting   there is no such chip
    EmulatorMissing   the chip's code would execute, and Unicorn is not installed
    """
    silicon = _silicon_named(chip)
    stopping = threading.Event()
    out = Transmitter(uart_out, stopping)
    program: Program | None = None
    if silicon.executes:
        make = _load_execution(silicon)
        program = make(silicon, out=out, stopping=stopping, mac=mac, cpu_budget=cpu_budget)
    booted = _Booted(silicon, _bounded(flash), out, stopping, program, on_restart, cause)
    booted.start()
    return booted


def require_emulator(chip: str) -> None:
    """Raise as `boot` does for `chip`; for a process that would rather know it at its start."""
    silicon = _silicon_named(chip)
    if silicon.executes:
        _load_execution(silicon)


class Program(Protocol):
    """The code of an application, executing: see `execution.Execution`."""

    def feed(self, data: bytes) -> None: ...

    def wake(self) -> None: ...

    def run(self, image: Image) -> bool: ...


class _MakeProgram(Protocol):
    def __call__(
        self,
        silicon: Silicon,
        *,
        out: Transmitter,
        stopping: threading.Event,
        mac: bytes,
        cpu_budget: float,
    ) -> Program: ...


class _Booted:
    """One boot, from the ROM's first line to the end of its thread."""

    def __init__(
        self,
        silicon: Silicon,
        flash: ReadFlash,
        out: Transmitter,
        stopping: threading.Event,
        program: Program | None,
        on_restart: Callable[[], None],
        cause: ResetCause,
    ) -> None:
        self._silicon = silicon
        self._flash = flash
        self._out = out
        self._stopping = stopping
        self._program = program
        self._on_restart = on_restart
        self._cause = cause
        self._thread = threading.Thread(target=self._run, name="board-cpu", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def feed(self, data: bytes) -> None:
        if self._program is not None:
            self._program.feed(data)

    def stop(self) -> None:
        self._stopping.set()
        if self._program is not None:
            self._program.wake()
        if threading.current_thread() is self._thread:
            return  # from `on_restart`: the thread ends with it
        self._thread.join(STOP_DEADLINE_S)
        if self._thread.is_alive():
            log.error("cpu.stop_timed_out", chip=self._silicon.name, deadline_s=STOP_DEADLINE_S)

    def _run(self) -> None:
        try:
            image = self._reach_app()
            if image is None:
                return
            if self._program is None:
                self._out.say(_acted_lines(image))
            elif self._program.run(image) and not self._stopping.is_set():
                self._on_restart()
        except Exception as exc:
            log.exception("cpu.failed", chip=self._silicon.name)
            with suppress(Exception):  # the UART itself may be what failed
                self._out.say([f"aegis virtual board: halted, {type(exc).__name__}: {exc}"])

    def _reach_app(self) -> Image | None:
        """Act ROM and bootloader until there is an application; None when stopped before."""
        cause = self._cause
        while not self._stopping.is_set():
            elapsed_ms = partial(_elapsed_ms, time.monotonic())
            found = find_app(self._silicon, self._flash, cause, elapsed_ms)
            self._out.say(found.lines)
            if not isinstance(found, Refused):
                return found.image
            for complaint in found.repeated:
                self._out.say([complaint])
                self._stopping.wait(_COMPLAINT_PAUSE_S)
            self._stopping.wait(_RETRY_PAUSE_S)
            cause = found.cause
        return None


def _acted_lines(image: Image) -> list[str]:
    """Return what the board says of an application whose code it can't execute."""
    described = image.description()
    what = "image without a descriptor"
    if described is not None:
        name = f"{described.project} {described.version}".strip()
        what = f"image {name}, ELF SHA-256 {described.elf_sha256}"
    return [
        f"aegis virtual board: {image.size_bytes} bytes at 0x{image.offset:x}, "
        f"{len(image.segments)} segments, entry 0x{image.entry:08x}",
        f"aegis virtual board: Xtensa code is not executed; {what}",
    ]


def _silicon_named(chip: str) -> Silicon:
    silicon = SILICON.get(chip)
    if silicon is None:
        raise BadBoardSetting(f"There is no virtual {chip!r}: it can be {', '.join(SILICON)}.")
    return silicon


def _load_execution(silicon: Silicon) -> _MakeProgram:
    """Import what imports Unicorn: only here, and only for a chip that needs it."""
    try:
        from aegis_agent.virtual_board.execution import Execution
    except ImportError as exc:
        raise EmulatorMissing(
            f"A virtual {silicon.name} executes what is flashed in Unicorn, which is not installed."
        ) from exc
    return Execution


def _bounded(flash: ReadFlash) -> ReadFlash:
    """Return `flash` with no data, not an error, where an image points outside of it."""

    def read(offset: int, size_bytes: int) -> bytes:
        try:
            return flash(offset, size_bytes)
        except OutOfFlash:
            return b""

    return read


def _elapsed_ms(since_s: float) -> int:
    return int((time.monotonic() - since_s) * 1000)
