# SPDX-License-Identifier: GPL-2.0-or-later
"""
Exceptions: what one is, where the chip would go with it, and ESP-IDF's words for a panic.

The board prints a panic itself only for firmware that has no handler of its own (mtvec is 0, or
leads nowhere).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FETCH_ACCESS: Final = 1
ILLEGAL_INSTRUCTION: Final = 2
BREAKPOINT: Final = 3
LOAD_MISALIGNED: Final = 4
LOAD_ACCESS: Final = 5
STORE_MISALIGNED: Final = 6
STORE_ACCESS: Final = 7
ECALL_FROM_U: Final = 8
ECALL_FROM_M: Final = 11

_REASONS: Final = {
    0: "Instruction address misaligned",
    FETCH_ACCESS: "Instruction access fault",
    ILLEGAL_INSTRUCTION: "Illegal instruction",
    BREAKPOINT: "Breakpoint",
    LOAD_MISALIGNED: "Load address misaligned",
    LOAD_ACCESS: "Load access fault",
    STORE_MISALIGNED: "Store address misaligned",
    STORE_ACCESS: "Store access fault",
    ECALL_FROM_U: "Environment call from U-mode",
    ECALL_FROM_M: "Environment call from M-mode",
}

_MIE: Final = 1 << 3
_MPIE: Final = 1 << 7
_MPP: Final = 3 << 11

_X_NAMES: Final = (
    *("RA", "SP", "GP", "TP", "T0", "T1", "T2", "S0/FP", "S1"),
    *(f"A{n}" for n in range(8)),
    *(f"S{n}" for n in range(2, 12)),
    *(f"T{n}" for n in range(3, 7)),
)
_STACK_LINES: Final = 32
STACK_WORDS: Final = _STACK_LINES * 8


@dataclass(frozen=True, slots=True)
class Trap:
    """An exception: mcause, the address that goes into mepc, and mtval."""

    cause: int
    epc: int
    value: int

    @property
    def reason(self) -> str:
        return _REASONS.get(self.cause, "Unknown reason")


@dataclass(frozen=True, slots=True)
class Registers:
    """`x` are x0 to x31."""

    x: Sequence[int]
    mstatus: int
    mtvec: int


def vector(mtvec: int) -> int | None:
    """Return where an exception enters, None where there is no handler."""
    # CLIC mode aligns the base to 64; vectored mode sends exceptions to the base as direct does.
    base = mtvec & (~63 if mtvec & 3 == 3 else ~3)
    return base or None


def mstatus_in_handler(mstatus: int) -> int:
    """Return mstatus as it is on entry to the handler: interrupts off, machine mode before."""
    was_enabled = bool(mstatus & _MIE)
    return mstatus & ~(_MIE | _MPIE) | (_MPIE if was_enabled else 0) | _MPP


def panic_lines(
    trap: Trap, registers: Registers, stack: Sequence[int], elf_sha256: str
) -> list[str]:
    """
    Return ESP-IDF's RISC-V panic (components/esp_system/panic.c) for `trap`.

    stack   words from the stack pointer on; fewer where memory ends
    """
    words = [("MEPC", trap.epc), *zip(_X_NAMES, registers.x[1:], strict=True)]
    words += [
        ("MSTATUS", registers.mstatus),
        ("MTVEC", registers.mtvec),
        ("MCAUSE", trap.cause),
        ("MTVAL", trap.value),
        ("MHARTID", 0),
    ]
    shown = [f"{name:<8}: 0x{value:08x}  " for name, value in words]
    lines = [
        f"Guru Meditation Error: Core  0 panic'ed ({trap.reason}). Exception was unhandled.",
        "",
        "Core  0 register dump:",
        *("".join(shown[at : at + 4]) for at in range(0, len(shown), 4)),
        "",
        "Stack memory:",
    ]
    sp = registers.x[2]
    for at in range(0, len(stack) - len(stack) % 8, 8):
        row = " ".join(f"0x{word:08x}" for word in stack[at : at + 8])
        lines.append(f"{sp + at * 4 & 0xFFFFFFFF:08x}: {row}")
    return [*lines, "", "", "", f"ELF file SHA256: {elf_sha256}", "", "Rebooting..."]
