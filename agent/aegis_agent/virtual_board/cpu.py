# SPDX-License-Identifier: GPL-2.0-or-later
"""
The RISC-V core: Unicorn with a chip's memory around it. The one file that names Unicorn.

Unicorn never goes to mtvec by itself: `run` ends with a `Trap`, and `enter` goes to the firmware's
handler as the chip would. Unicorn's core is GPL-2.0, and native code that can crash: it is loaded
by the board's own process alone.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Any, Final

from unicorn import (
    UC_ARCH_RISCV,
    UC_HOOK_CODE,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_HOOK_MEM_INVALID,
    UC_MEM_FETCH_PROT,
    UC_MEM_FETCH_UNMAPPED,
    UC_MEM_WRITE_PROT,
    UC_MEM_WRITE_UNMAPPED,
    UC_MODE_RISCV32,
)
from unicorn import riscv_const as rv
from unicorn.unicorn_py3 import Uc, UcError

from aegis_agent.virtual_board import atomics, csr, sites, trap
from aegis_agent.virtual_board.csr import Csrs
from aegis_agent.virtual_board.image import Image
from aegis_agent.virtual_board.memory import EXECUTE, READ, WRITE, Memory
from aegis_agent.virtual_board.peripherals import LiveRegisters
from aegis_agent.virtual_board.silicon import PAGE_BYTES, Silicon
from aegis_agent.virtual_board.trap import Registers, Trap

# Not mapped in any chip, so that a program which gets there has jumped astray.
_NEVER: Final = 0xFFFFFFFE
# Translated code: it is thrown away when it fills this, and the default is 1 GiB.
_TRANSLATED_BYTES: Final = 32 * 1024 * 1024
_WFI: Final = 0x10500073
_EBREAKS: Final = (b"\x02\x90", b"\x73\x00")  # c.ebreak, and the lower half of ebreak


class Stop(Enum):
    PAUSED = "paused"  # as asked
    WAITING = "waiting"  # at a WFI instruction


class EmulatorFault(Exception):
    """Unicorn gave up for a reason of its own."""


class Cpu:
    """
    One core with `image` loaded, about to execute its first instruction.

    All methods but `ask` and `force` belong to one thread; see `interrupter` for those two.
    """

    def __init__(
        self, silicon: Silicon, image: Image, registers: LiveRegisters, csrs: Csrs
    ) -> None:
        make: Any = Uc  # its methods carry no types
        self._uc: Any = make(UC_ARCH_RISCV, UC_MODE_RISCV32)
        self._uc.ctl_set_tcg_buffer_size(_TRANSLATED_BYTES)
        self._registers = registers
        self._csrs = csrs
        self._atomics = atomics.Atomics()
        self._has_atomics = silicon.has_atomics
        self._pc = image.entry
        self._lock = threading.Lock()
        self._run_number = 0
        self._is_asked = False
        self._trap: Trap | None = None
        loaded = [segment for segment in image.segments if segment.is_loaded]
        self._memory = Memory(self._uc, silicon, loaded, registers)
        read, write = self._on_register_read, self._on_register_write
        for page in registers.pages:
            self._uc.mmio_map(page, PAGE_BYTES, read, page, write, page)
        self._uc.hook_add(UC_HOOK_MEM_INVALID, self._on_bad_access)
        self._uc.hook_add(UC_HOOK_INTR, self._on_exception)
        self._uc.hook_add(UC_HOOK_INSN_INVALID, self._on_invalid)
        for address in sites.sites(loaded):
            self._uc.hook_add(UC_HOOK_CODE, self._on_site, begin=address, end=address)

    def run(self) -> Stop | Trap:
        """Execute until something must be decided; raise `EmulatorFault` where Unicorn can't."""
        with self._lock:
            self._run_number += 1
            self._is_asked = False
        self._trap = None
        failure: UcError | None = None
        try:
            self._uc.emu_start(self._pc, _NEVER)
        except UcError as exc:
            failure = exc
        self._pc = self._read_pc()
        taken = self._taken()
        if taken is not None:
            return taken
        if failure is not None:
            raise EmulatorFault(f"{failure} at 0x{self._pc:08x}") from failure
        if self._pc == _NEVER:
            return Trap(trap.FETCH_ACCESS, _NEVER, _NEVER)
        return Stop.WAITING if self._memory.word(self._pc - 4) == _WFI else Stop.PAUSED

    def ask(self) -> int:
        with self._lock:
            self._is_asked = True
            return self._run_number

    def force(self, run: int | None) -> None:
        with self._lock:
            if run is None or (run == self._run_number and self._is_asked):
                self._uc.emu_stop()

    def halt(self) -> None:
        """End `run` from within a register's action; that instruction would be repeated."""
        self._uc.emu_stop()

    def enter(self, handler: int, taken: Trap) -> None:
        """Go to `handler` with `taken`."""
        write = self._uc.reg_write
        write(rv.UC_RISCV_REG_MEPC, taken.epc)
        write(rv.UC_RISCV_REG_MCAUSE, taken.cause)
        write(rv.UC_RISCV_REG_MTVAL, taken.value)
        status = trap.mstatus_in_handler(self._uc.reg_read(rv.UC_RISCV_REG_MSTATUS))
        write(rv.UC_RISCV_REG_MSTATUS, status)
        self._pc = handler

    @property
    def mtvec(self) -> int:
        return self._csrs.mtvec or int(self._uc.reg_read(rv.UC_RISCV_REG_MTVEC))

    def registers(self) -> Registers:
        return Registers(
            x=[self._x(number) for number in range(32)],
            mstatus=self._uc.reg_read(rv.UC_RISCV_REG_MSTATUS),
            mtvec=self.mtvec,
        )

    def stack(self, most_words: int) -> list[int]:
        """Return the words from the stack pointer on, as far as there is memory."""
        words: list[int] = []
        address = self._x(2) & ~3
        while len(words) < most_words:
            word = self._memory.word(address + 4 * len(words))
            if word is None:
                break
            words.append(word)
        return words

    def is_executable(self, address: int) -> bool:
        return self._memory.allows(address, EXECUTE)

    # --- registers in memory ---

    def _on_register_read(self, _: Any, offset: int, size_bytes: int, page: int) -> int:
        if self._is_asked:
            self._uc.emu_stop()  # nothing was read: the instruction is repeated
            return 0
        return self._registers.read(page + offset, size_bytes)

    def _on_register_write(
        self, _: Any, offset: int, size_bytes: int, value: int, page: int
    ) -> None:
        if self._is_asked:
            self._uc.emu_stop()
            return
        self._registers.write(page + offset, size_bytes, value)

    # --- exceptions ---

    def _taken(self) -> Trap | None:
        """Return the trap that ended the run: the hooks below leave it."""
        return self._trap

    def _on_bad_access(
        self, _: Any, access: int, address: int, size_bytes: int, value: int, data: Any
    ) -> bool:
        pc = self._read_pc()
        if access in (UC_MEM_FETCH_UNMAPPED, UC_MEM_FETCH_PROT):
            self._trap = Trap(trap.FETCH_ACCESS, pc, address)
        elif access in (UC_MEM_WRITE_UNMAPPED, UC_MEM_WRITE_PROT):
            self._trap = Trap(trap.STORE_ACCESS, pc, address)
        else:
            self._trap = Trap(trap.LOAD_ACCESS, pc, address)
        return False

    def _on_exception(self, uc: Any, number: int, data: Any) -> None:
        # Whatever the instruction's length, pc is four past its beginning here.
        pc = self._read_pc() - 4 & 0xFFFFFFFF
        if number == trap.ILLEGAL_INSTRUCTION:
            word = self._memory.word(pc) or 0
            access = csr.decode(word)
            if access is not None and csr.is_known(access):
                self._perform(access)
                return
            value = word if word & 3 == 3 else word & 0xFFFF
            self._trap = Trap(trap.ILLEGAL_INSTRUCTION, pc, value)
        elif number == trap.ECALL_FROM_U:
            self._trap = Trap(trap.ECALL_FROM_M, pc, 0)
        else:
            self._trap = Trap(number, pc, 0)
        uc.emu_stop()

    def _on_invalid(self, uc: Any, data: Any) -> bool:
        pc = self._read_pc()
        half = ((self._memory.word(pc) or 0) & 0xFFFF).to_bytes(2, "little")
        is_break = half in _EBREAKS
        self._trap = Trap(trap.BREAKPOINT if is_break else trap.ILLEGAL_INSTRUCTION, pc, 0)
        return False

    # --- instructions executed here ---

    def _on_site(self, uc: Any, address: int, size_bytes: int, data: Any) -> None:
        if self._is_asked:
            uc.emu_stop()
            return
        word = self._memory.word(address) or 0
        access = csr.decode(word)
        atomic = atomics.decode(word)
        if access is not None and access.csr in csr.OURS and csr.is_known(access):
            self._perform(access)
        elif atomic is not None:
            self._trap = self._atomic_trap(atomic, address, word)
            if self._trap is not None:
                uc.emu_stop()
                return
        else:
            return  # Unicorn does it: something else stands there by now, or it traps
        uc.reg_write(rv.UC_RISCV_REG_PC, address + 4)

    def _atomic_trap(self, access: atomics.AtomicAccess, pc: int, word: int) -> Trap | None:
        """Do `access`; return the trap that it ends in, if it does."""
        at = self._x(access.address)
        if not self._has_atomics:
            return Trap(trap.ILLEGAL_INSTRUCTION, pc, word)
        if at % 4:
            cause = trap.LOAD_MISALIGNED if access.is_load else trap.STORE_MISALIGNED
            return Trap(cause, pc, at)
        if not self._memory.allows(at, READ if access.is_load else WRITE):
            return Trap(trap.LOAD_ACCESS if access.is_load else trap.STORE_ACCESS, pc, at)
        operand = self._x(access.operand)
        old = self._atomics.perform(access, at, operand, self._memory.load, self._memory.store)
        if access.target:
            self._uc.reg_write(rv.UC_RISCV_REG_X0 + access.target, old)
        return None

    def _perform(self, access: csr.CsrAccess) -> None:
        operand = access.source if access.is_immediate else self._x(access.source)
        old = self._csrs.perform(access, operand)
        if access.target:
            self._uc.reg_write(rv.UC_RISCV_REG_X0 + access.target, old)

    # --- registers ---

    def _x(self, number: int) -> int:
        return int(self._uc.reg_read(rv.UC_RISCV_REG_X0 + number))

    def _read_pc(self) -> int:
        return int(self._uc.reg_read(rv.UC_RISCV_REG_PC))
