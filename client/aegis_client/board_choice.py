"""Which board is meant, checked against the boards there are before a job is made for it."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_protocol.board import Board, BoardWish
from aegis_protocol.failures.board import BoardNotFound, ChipMismatch
from aegis_protocol.http_api.boards import BoardRow


def fits(board: Board, wish: BoardWish) -> bool:
    """Tell whether `board` is what `wish` asks for."""
    if wish.id is not None and wish.id != board.id:
        return False
    if wish.chip is not None and wish.chip != board.chip:
        return False
    return all(board.labels.get(key) == value for key, value in wish.labels.items())


def check_wish(rows: Sequence[BoardRow], wish: BoardWish, target: str | None) -> None:
    """
    Raise BoardNotFound for an id that no agent has, and ChipMismatch when the board of that id is
    not a `target`. A board that is only taken, or a chip that is not there yet, is waited for.
    """
    if wish.id is None:
        return
    named = [row.board for row in rows if row.board.id == wish.id]
    if not named:
        raise BoardNotFound(
            f"no agent has a board {wish.id}", boards=sorted({row.board.id for row in rows})[:50]
        )
    if target:
        check_chip(named[0], target)


def check_chip(board: Board, target: str) -> None:
    """Raise ChipMismatch when the board is known to be another chip than `target`."""
    if board.chip is not None and board.chip != target:
        raise ChipMismatch(
            f"the firmware is for {target}, and {board.id} is {board.chip}",
            target=target,
            chip=board.chip,
        )
