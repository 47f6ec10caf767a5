# SPDX-License-Identifier: GPL-2.0-or-later
"""
The control and status registers that the emulated core lacks, or has otherwise than the chips.

- Cycle counters count wall time at the chip's clock (the core's would show the host's counter).
- `mtvec` takes every mode (the core drops a write with the chips' CLIC mode).
- A register that the core doesn't know, such as those of the chips' own interrupt controllers and
  performance counters, keeps what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MTVEC: Final = 0x305
_LOW_COUNTERS: Final = frozenset({0xB00, 0xC00, 0x7E2})  # mcycle, cycle, the chips' mpccr
_HIGH_COUNTERS: Final = frozenset({0xB80, 0xC80})
OURS: Final = _LOW_COUNTERS | _HIGH_COUNTERS | {MTVEC}

_OPCODE: Final = 0x73
_FLOAT_CSRS: Final = range(0x001, 0x004)  # unknown to the core only while mstatus.FS is off
_COUNTER_CSRS: Final = range(0xC00, 0xCA0)  # no ESP chip has `time` and the like


@dataclass(frozen=True, slots=True)
class CsrAccess:
    """
    One CSR instruction.

    operation   0 write, 1 set bits, 2 clear bits
    source      the number of a register, or where `is_immediate` the value itself
    """

    csr: int
    target: int
    operation: int
    source: int
    is_immediate: bool

    @property
    def writes(self) -> bool:
        return self.operation == 0 or self.source != 0


def decode(word: int) -> CsrAccess | None:
    """Return what the instruction `word` does with a CSR, None where it is no such one."""
    kind = word >> 12 & 7
    if word & 0x7F != _OPCODE or kind & 3 == 0:
        return None
    return CsrAccess(
        csr=word >> 20,
        target=word >> 7 & 31,
        operation=(kind & 3) - 1,
        source=word >> 15 & 31,
        is_immediate=bool(kind & 4),
    )


def is_known(access: CsrAccess) -> bool:
    """Return whether a chip would do `access` rather than trap."""
    is_read_only = access.csr >> 10 == 3
    if is_read_only and access.writes:
        return False
    if access.csr in OURS:
        return True
    return access.csr not in _FLOAT_CSRS and access.csr not in _COUNTER_CSRS


class Csrs:
    """
    Values of these registers.

    elapsed_ns  nanoseconds since the reset
    cpu_hz      what the cycle counters count
    on_count    is told each time the firmware looks at a counter
    """

    def __init__(
        self, elapsed_ns: Callable[[], int], cpu_hz: int, on_count: Callable[[], None]
    ) -> None:
        self._elapsed_ns = elapsed_ns
        self._cpu_hz = cpu_hz
        self._on_count = on_count
        self._cycles_offset = 0
        self._values: dict[int, int] = {}

    @property
    def mtvec(self) -> int:
        return self._values.get(MTVEC, 0)

    def perform(self, access: CsrAccess, operand: int) -> int:
        """Do `access` with `operand`, the value of its source; return the register's old value."""
        old = self._read(access.csr)
        if access.writes:
            new = (operand, old | operand, old & ~operand)[access.operation]
            self._write(access.csr, new & 0xFFFFFFFF)
        return old

    def _read(self, csr: int) -> int:
        if csr in _LOW_COUNTERS:
            self._on_count()
            return self._cycles() & 0xFFFFFFFF
        if csr in _HIGH_COUNTERS:
            return self._cycles() >> 32 & 0xFFFFFFFF
        return self._values.get(csr, 0)

    def _write(self, csr: int, value: int) -> None:
        if csr in _LOW_COUNTERS:
            self._cycles_offset += value - (self._cycles() & 0xFFFFFFFF)
        elif csr in _HIGH_COUNTERS:
            self._cycles_offset += (value << 32) - (self._cycles() >> 32 << 32)
        else:
            self._values[csr] = value

    def _cycles(self) -> int:
        return self._elapsed_ns() * self._cpu_hz // 1_000_000_000 + self._cycles_offset
