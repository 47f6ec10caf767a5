"""
All boards of this machine: those of the list and those on USB, who holds each, and the fences.

A board has one holder. Every holding carries a fencing number from control; one lower than the
highest ever seen for the board is refused, across restarts. A board's id is the list's, or made
from its USB identity; once its MAC was read, the id is the MAC's from the next time it is free.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.board import Board
from aegis_protocol.failures.board import BoardBusy, BoardGone, BoardNotFound, BoardNotGranted
from aegis_protocol.failures.grant import GrantStale
from aegis_protocol.states import BoardState

from aegis_agent.boards import ports
from aegis_agent.boards.console import RETURN_DEADLINE_S
from aegis_agent.boards.device import BoardDevice
from aegis_agent.boards.discovery import UsbBoard, changes, usb_boards
from aegis_agent.boards.memory import BoardMemory, Known
from aegis_agent.config import StaticBoard

log = structlog.get_logger()

_SPOOL_BYTES: Final = 256 * 1024 * 1024
_POLL_S: Final = 2.0


@dataclass
class _Row:
    """place: what the board's MAC and chip are remembered under; listed: it is of the list."""

    board: Board
    port: str
    place: str
    listed: StaticBoard | None = None

    def locate(self) -> str | None:
        """Where the board's port is now: one on USB may be back under another name. Blocks."""
        if self.listed is not None:
            return self.port if ports.is_present(self.port) else None
        return next((usb.port for usb in usb_boards() if usb.key == self.place), None)


@dataclass(frozen=True)
class _Holding:
    job_id: str
    device: BoardDevice
    row: _Row


class BoardRegistry:
    """
    static            boards of the configuration; one that is on USB too is listed as static alone
    on_change         called with all boards whenever one comes, goes, or is learned about
    spool_bytes       what a console keeps of its output
    poll_s            how often ports are looked for that no event tells of
    console_return_s  how long a console waits for a port that went away
    """

    def __init__(
        self,
        static: Sequence[StaticBoard],
        *,
        discover: bool,
        state_dir: Path,
        on_change: Callable[[tuple[Board, ...]], None],
        spool_bytes: int = _SPOOL_BYTES,
        poll_s: float = _POLL_S,
        console_return_s: float = RETURN_DEADLINE_S,
    ) -> None:
        self._static = tuple(static)
        self._discover = discover
        self._on_change = on_change
        self._spool_bytes = spool_bytes
        self._poll_s = poll_s
        self._console_return_s = console_return_s
        self._memory = BoardMemory(state_dir / "boards.json")
        self._rows: dict[str, _Row] = {}
        self._holdings: dict[str, _Holding] = {}
        self._told: tuple[Board, ...] = ()
        self._found: tuple[UsbBoard, ...] = ()
        self._present = frozenset(b.port for b in self._static if ports.is_present(b.port))
        self._look()

    async def run(self) -> None:
        """Keep the list true until canceled."""
        async with aclosing(changes(self._poll_s)) as changed:
            async for _ in changed:
                try:
                    await self.looked()
                except OSError as exc:  # a device that went while it was looked at
                    log.warning("boards.not_looked", detail=str(exc))

    async def looked(self) -> tuple[Board, ...]:
        """Look once and return the boards."""
        found, present = await asyncio.to_thread(self._seen)
        self._found, self._present = found, present
        self._look()
        return self.boards()

    def boards(self) -> tuple[Board, ...]:
        return tuple(self._shown(row.board) for row in self._rows.values())

    def hold(self, board_id: str, job_id: str, fence: int) -> None:
        """
        Give the board to `job_id` under fencing number `fence`.

        Raises BoardNotFound, BoardGone, BoardBusy (another job has it), GrantStale (lower fence),
        DiskFull (the fence can't be kept).
        """
        row = self._rows.get(board_id)
        if row is None and not self._memory.has_seen(board_id):
            raise BoardNotFound(f"this agent has no board {board_id}", board=board_id)
        highest = self._memory.fence(board_id)
        if fence < highest:
            raise GrantStale(f"{board_id} was handed out anew since", fence=fence, highest=highest)
        holding = self._holdings.get(board_id)
        if holding is not None and holding.job_id != job_id:
            raise BoardBusy(f"{board_id} is held by another job", board=board_id)
        if row is None or row.board.state is BoardState.GONE:
            raise BoardGone(f"{board_id} is not connected", board=board_id)
        self._memory.raise_fence(board_id, fence)
        if holding is None:
            self._holdings[board_id] = _Holding(job_id, self._device(row), row)
            self._tell()
        log.info("board.held", board_id=board_id, job_id=job_id, fence=fence)

    def void(self, board_id: str, fence: int) -> None:
        """Refuse `board_id` to every grant up to this fencing number. Raises DiskFull."""
        if self._memory.has_seen(board_id):
            self._memory.raise_fence(board_id, fence + 1)

    async def release(self, job_id: str) -> None:
        """End what `job_id` has running on its boards and set them free."""
        for board_id, holding in list(self._holdings.items()):
            if holding.job_id != job_id:
                continue
            try:
                await holding.device.close()
            finally:
                self._holdings.pop(board_id, None)
                self._look()
            log.info("board.released", board_id=board_id, job_id=job_id)

    def device(self, board_id: str, job_id: str) -> BoardDevice:
        """The board in the hands of `job_id`; BoardNotGranted for anybody else."""
        holding = self._holdings.get(board_id)
        if holding is None or holding.job_id != job_id:
            # The same answer for a board that is absent: who may not use it may not ask either.
            raise BoardNotGranted(f"this job does not hold a board {board_id}", board=board_id)
        return holding.device

    def _device(self, row: _Row) -> BoardDevice:
        board = row.board
        return BoardDevice(
            board.id,
            row.locate,
            # What was read may be another board's by now: only what the list says is refused.
            chip=row.listed.chip if row.listed else None,
            mac=board.mac if board.mac is not None and board.id == _mac_id(board.mac) else None,
            on_identity=self._learned,
            spool_bytes=self._spool_bytes,
            console_return_s=self._console_return_s,
        )

    def _seen(self) -> tuple[tuple[UsbBoard, ...], frozenset[str]]:
        found = usb_boards() if self._discover else ()
        return found, frozenset(b.port for b in self._static if ports.is_present(b.port))

    def _look(self) -> None:
        """Make the rows of what was seen last, and tell of what has changed."""
        rows = {listed.id: self._listed(listed) for listed in self._static}
        taken = {os.path.realpath(listed.port) for listed in self._static}
        for usb in self._found:
            if os.path.realpath(usb.port) not in taken:
                row = self._on_usb(usb)
                rows.setdefault(row.board.id, row)
        for board_id, holding in self._holdings.items():
            if board_id not in rows:
                gone = holding.row.board.model_copy(update={"state": BoardState.GONE})
                rows[board_id] = _Row(gone, holding.row.port, holding.row.place)
        self._rows = rows
        self._tell()

    def _listed(self, listed: StaticBoard) -> _Row:
        known = self._memory.known(listed.id)
        board = Board(
            id=listed.id,
            chip=listed.chip or known.chip,
            labels=listed.labels,
            state=BoardState.FREE if listed.port in self._present else BoardState.GONE,
            description=listed.port.partition("://")[0] if "://" in listed.port else "",
            mac=known.mac,
        )
        return _Row(board, listed.port, listed.id, listed)

    def _on_usb(self, usb: UsbBoard) -> _Row:
        known = self._memory.known(usb.key)
        # Not while a job holds the board under its USB identity.
        has_mac_id = known.mac is not None and usb.key not in self._holdings
        board = Board(
            id=_mac_id(known.mac) if known.mac is not None and has_mac_id else usb.key,
            chip=known.chip,
            description=usb.description,
            mac=known.mac,
        )
        return _Row(board, usb.port, usb.key)

    def _learned(self, board_id: str, mac: str, chip: str) -> None:
        holding = self._holdings.get(board_id)
        if holding is not None:
            self._memory.learn(holding.row.place, Known(mac=mac, chip=chip))
            self._look()

    def _shown(self, board: Board) -> Board:
        if board.id in self._holdings and board.state is BoardState.FREE:
            return board.model_copy(update={"state": BoardState.HELD})
        return board

    def _tell(self) -> None:
        boards = self.boards()
        if boards != self._told:
            self._told = boards
            self._on_change(boards)


def _mac_id(mac: str) -> str:
    return "mac-" + mac.replace(":", "")
