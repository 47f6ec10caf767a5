# SPDX-License-Identifier: GPL-2.0-or-later
"""
One image executing: the loop around the core.

    run the core until it traps, waits, was interrupted or asks for a restart
      a trap      goes to the firmware's handler; without one the board prints the panic
      waiting     sleeps until a byte comes, at most a few milliseconds
      over budget sleeps until the share of a core is kept
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Final

from aegis_agent.virtual_board import trap
from aegis_agent.virtual_board.budget import CpuBudget, Waiting
from aegis_agent.virtual_board.cpu import Cpu, Stop
from aegis_agent.virtual_board.csr import Csrs
from aegis_agent.virtual_board.image import Image
from aegis_agent.virtual_board.interrupter import Interrupter
from aegis_agent.virtual_board.peripherals import LiveRegisters, ResetRegister, Systimer, Uart0
from aegis_agent.virtual_board.silicon import Silicon
from aegis_agent.virtual_board.transmitter import Transmitter
from aegis_agent.virtual_board.trap import Trap

# The same bad access from the same place, that often and with nothing said: handling goes nowhere.
_MOST_REPEATS: Final = 1000
_ACCESS_FAULTS: Final = (trap.FETCH_ACCESS, trap.LOAD_ACCESS, trap.STORE_ACCESS)


class Execution:
    """
    Runs one image in the thread that calls `run`; `feed` and `wake` are for other threads.

    stopping    set from outside to end it
    cpu_budget  share of a core
    """

    def __init__(
        self,
        silicon: Silicon,
        *,
        out: Transmitter,
        stopping: threading.Event,
        mac: bytes,
        cpu_budget: float,
    ) -> None:
        self._silicon = silicon
        self._out = out
        self._stopping = stopping
        self._cpu_budget = cpu_budget
        self._woken = threading.Event()
        self._started_ns = time.monotonic_ns()
        self._waiting = Waiting()
        self._is_asleep = False
        self._is_restarting = False
        self._uart = Uart0(self._send, self._on_empty)
        self._registers = LiveRegisters(
            silicon,
            self._uart,
            Systimer(self._elapsed_ns, self._on_clock),
            ResetRegister(silicon.reset_bit, self._on_reset),
            mac,
        )
        self._csrs = Csrs(self._elapsed_ns, silicon.cpu_hz, self._on_clock)
        self._cpu: Cpu | None = None
        self._last_trap: tuple[int, int] | None = None
        self._repeats = 0
        self._said_rom = False

    def feed(self, data: bytes) -> None:
        """Take bytes for UART0 from the host."""
        self._uart.feed(data)
        self._woken.set()

    def wake(self) -> None:
        """End a nap; to be called after `stopping` was set."""
        self._woken.set()

    def run(self, image: Image) -> bool:
        """Execute `image`; return True when it restarts the chip, False when told to stop."""
        try:
            return self._execute(image)
        finally:
            # Unicorn's callbacks and the core hold each other: without this a firmware that
            # restarts again and again fills the memory faster than it is cleared.
            gc.collect()

    def _execute(self, image: Image) -> bool:
        cpu = self._cpu = Cpu(self._silicon, image, self._registers, self._csrs)
        try:
            with Interrupter(cpu, self._stopping):
                return self._loop(cpu, image)
        finally:
            self._cpu = None
            self._out.flush()

    def _loop(self, cpu: Cpu, image: Image) -> bool:
        budget = CpuBudget(self._cpu_budget)
        while not self._stopping.is_set():
            stop = cpu.run()
            if self._is_restarting:
                return True
            if isinstance(stop, Trap):
                if not self._enter_handler(cpu, stop, image):
                    return True
            else:
                self._out.flush()
            if stop is Stop.WAITING or self._is_asleep:
                self._nap()
            if debt_s := budget.debt_s():
                self._stopping.wait(min(debt_s, 1.0))
        return False

    # --- what the registers tell, in the middle of an instruction ---

    def _send(self, byte: int) -> None:
        self._waiting.acted()
        self._last_trap = None
        if not self._is_restarting:
            self._out.send(byte)

    def _on_empty(self) -> None:
        if self._waiting.looked():
            self._fall_asleep()

    def _on_clock(self) -> None:
        if self._waiting.looked_at_clock():
            self._fall_asleep()

    def _on_reset(self) -> None:
        self._is_restarting = True
        if self._cpu is not None:
            self._cpu.halt()

    def _fall_asleep(self) -> None:
        self._is_asleep = True
        if self._cpu is not None:
            self._cpu.ask()

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._started_ns

    # --- between two runs of the core ---

    def _nap(self) -> None:
        self._is_asleep = False
        nap_s = self._waiting.nap_s()
        self._out.flush()
        self._woken.clear()
        if not (self._uart.has_input or self._stopping.is_set()):
            self._woken.wait(nap_s)

    def _enter_handler(self, cpu: Cpu, taken: Trap, image: Image) -> bool:
        """Go to the firmware's handler; without one print the panic and return False."""
        if taken.cause == trap.FETCH_ACCESS:
            self._say_rom(taken.value)
        handler = trap.vector(cpu.mtvec)
        why = self._why_unhandled(cpu, handler, taken)
        if why is None and handler is not None:
            cpu.enter(handler, taken)
            return True
        self._out.say([f"aegis virtual board: {why}; the board prints this panic itself"])
        described = image.description()
        registers = cpu.registers()
        self._out.say(
            trap.panic_lines(
                taken,
                registers,
                cpu.stack(trap.STACK_WORDS),
                described.elf_sha256 if described else "unknown",
            )
        )
        return False

    def _why_unhandled(self, cpu: Cpu, handler: int | None, taken: Trap) -> str | None:
        if handler is None:
            return "the firmware has no trap handler (mtvec is 0)"
        if not cpu.is_executable(handler):
            return f"the trap handler 0x{handler:08x} is not in executable memory"
        if taken.epc == handler:
            return f"the trap handler 0x{handler:08x} can't run its first instruction"
        place = (taken.cause, taken.epc)
        is_repeated = taken.cause in _ACCESS_FAULTS and place == self._last_trap
        self._repeats = self._repeats + 1 if is_repeated else 0
        self._last_trap = place
        if self._repeats >= _MOST_REPEATS:
            return f"the trap handler 0x{handler:08x} ends in the same fault again and again"
        return None

    def _say_rom(self, address: int) -> None:
        if not self._said_rom and any(rom.holds(address) for rom in self._silicon.rom):
            self._said_rom = True
            where = f"0x{address:08x} is in the chip's ROM"
            self._out.say([f"aegis virtual board: {where}, which is not emulated"])
