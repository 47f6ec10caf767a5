# SPDX-License-Identifier: GPL-2.0-or-later
"""
RV32A: what each atomic instruction does with a word of memory.

They are executed here rather than by Unicorn, which may stop one between its store and its end,
and then does it again: a counter would count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_OPCODE: Final = 0x2F
_WORD: Final = 2
_LOAD_RESERVED: Final = 0b00010
_STORE_CONDITIONAL: Final = 0b00011


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


_OPERATIONS: Final[Mapping[int, Callable[[int, int], int]]] = MappingProxyType(
    {
        0b00000: lambda old, operand: old + operand & 0xFFFFFFFF,
        0b00001: lambda old, operand: operand,
        0b00100: lambda old, operand: old ^ operand,
        0b01000: lambda old, operand: old | operand,
        0b01100: lambda old, operand: old & operand,
        0b10000: lambda old, operand: min(old, operand, key=_signed),
        0b10100: lambda old, operand: max(old, operand, key=_signed),
        0b11000: min,
        0b11100: max,
    }
)


@dataclass(frozen=True, slots=True)
class AtomicAccess:
    """`address` and `operand` are the numbers of registers, as `target` is."""

    operation: int
    target: int
    address: int
    operand: int

    @property
    def is_load(self) -> bool:
        return self.operation == _LOAD_RESERVED


def decode(word: int) -> AtomicAccess | None:
    """Return what the instruction `word` does, None where it is no atomic one."""
    operation = word >> 27
    known = operation in _OPERATIONS or operation in (_LOAD_RESERVED, _STORE_CONDITIONAL)
    if word & 0x7F != _OPCODE or word >> 12 & 7 != _WORD or not known:
        return None
    return AtomicAccess(
        operation=operation,
        target=word >> 7 & 31,
        address=word >> 15 & 31,
        operand=word >> 20 & 31,
    )


class Atomics:
    """The one reservation of a core."""

    def __init__(self) -> None:
        self._reserved: tuple[int, int] | None = None  # address and the word read there

    def perform(
        self,
        access: AtomicAccess,
        address: int,
        operand: int,
        read: Callable[[int], int],
        write: Callable[[int, int], None],
    ) -> int:
        """Do `access` at `address`; return the value for the target register."""
        old = read(address)
        if access.operation == _LOAD_RESERVED:
            self._reserved = (address, old)
            return old
        if access.operation == _STORE_CONDITIONAL:
            holds = self._reserved == (address, old)
            self._reserved = None
            if holds:
                write(address, operand)
            return 0 if holds else 1
        write(address, _OPERATIONS[access.operation](old, operand))
        return old
