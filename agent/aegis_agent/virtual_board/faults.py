# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong on request: the faults of a board, by name, each with one number."""

from __future__ import annotations

from typing import Final

from aegis_protocol.failures.virtual_board import BadBoardSetting

from aegis_agent.virtual_board.control_words import FaultName

DEFAULTS: Final = {
    FaultName.NO_STUB_GREETING: 0.0,
    FaultName.BAD_MD5: 0.0,
    FaultName.WRITE_ERROR: 0.0,
    FaultName.UNPLUG_AFTER: 0.0,
    FaultName.REPLUG_AFTER: 0.5,
    FaultName.VANISH_ON_RESET: 0.5,
}


class Faults:
    """The faults in force. A fault stays until it is cleared, except `unplug-after`."""

    def __init__(self) -> None:
        self._amounts: dict[FaultName, float] = {}

    def set(self, name: FaultName, amount: float | None = None) -> None:
        self._amounts[name] = DEFAULTS[name] if amount is None else amount

    def clear(self) -> None:
        self._amounts.clear()

    def amount(self, name: FaultName) -> float | None:
        """Return the fault's number, or None where the fault is not in force."""
        return self._amounts.get(name)

    def in_force(self) -> dict[FaultName, float]:
        return dict(self._amounts)

    def spend(self, name: FaultName, amount: int) -> int:
        """
        Take up to `amount` from the fault's number; return how much there was to take.

        `amount` itself where the fault is not in force, so less means that it strikes now.
        """
        left = self._amounts.get(name)
        if left is None:
            return amount
        taken = min(amount, int(left))
        self._amounts[name] = left - taken
        return taken

    def drop(self, name: FaultName) -> None:
        self._amounts.pop(name, None)


def parse_fault(text: str) -> tuple[FaultName, float | None]:
    """
    Return what `--fault NAME[:NUMBER]` asks for.

    Raises
    ------
    BadBoardSetting   there is no such fault, or its number is none
    """
    word, colon, number = text.partition(":")
    try:
        name = FaultName(word)
    except ValueError as exc:
        known = ", ".join(FaultName)
        raise BadBoardSetting(f"There is no fault {word!r}: it can be {known}.") from exc
    if not colon:
        return name, None
    try:
        amount = float(number)
    except ValueError as exc:
        raise BadBoardSetting(f"{number!r} is no number for the fault {word}.") from exc
    if not 0 <= amount < 2**31:
        raise BadBoardSetting(f"{number} is out of range for the fault {word}.")
    return name, amount
