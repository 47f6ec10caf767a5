"""
All boards of this machine: those of the list and those on USB, who holds each, and the fences.

A board has one holder. Every holding carries a fencing number from control; one lower than the
highest ever seen for the board is refused, across restarts. A board's id is the list's, or made
from its USB identity; once its MAC was read, the id is the MAC's from the next time it is free.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.board import Board
from aegis_protocol.failures.board import BoardBusy, BoardGone, BoardNotFound, BoardNotGranted
from aegis_protocol.failures.grant import GrantStale
from aegis_protocol.states import BoardState

from aegis_agent.boards import ports
from aegis_agent.boards.device import BoardDevice
from aegis_agent.boards.discovery import UsbBoard, changes, usb_boards
from aegis_agent.config import StaticBoard
from aegis_agent.files import write_atomic

log = structlog.get_logger()

_SPOOL_BYTES: Final = 256 * 1024 * 1024


@dataclass
class _Row:
    board: Board
    port: str
    key: str | None = None
    """Its USB identity; None for a board of the list."""


@dataclass(frozen=True)
class _Holding:
    job_id: str
    device: BoardDevice


class BoardRegistry:
    """
    static     boards of the configuration; a port that is on USB too is listed once, as static
    on_change  called with all boards whenever one comes, goes, or is learned about
    """

    def __init__(
        self,
        static: Sequence[StaticBoard],
        *,
        discover: bool,
        state_dir: Path,
        on_change: Callable[[tuple[Board, ...]], None],
        spool_bytes: int = _SPOOL_BYTES,
    ) -> None:
        self._static = tuple(static)
        self._discover = discover
        self._on_change = on_change
        self._spool_bytes = spool_bytes
        self._memory = _Memory(state_dir / "boards.json")
        self._rows: dict[str, _Row] = {}
        self._holdings: dict[str, _Holding] = {}
        self._told: tuple[Board, ...] = ()
        self._look([])

    async def run(self) -> None:
        """Keep the list true until canceled."""
        async for _ in changes():
            await self.looked()

    async def looked(self) -> tuple[Board, ...]:
        """Look once and return the boards."""
        found = await asyncio.to_thread(usb_boards) if self._discover else ()
        present = await asyncio.to_thread(
            lambda: {row.port: ports.is_present(row.port) for row in self._static}
        )
        self._look(found, present)
        return self.boards()

    def boards(self) -> tuple[Board, ...]:
        return tuple(self._shown(row.board) for row in self._rows.values())

    def hold(self, board_id: str, job_id: str, fence: int) -> None:
        """
        Give the board to `job_id` under fencing number `fence`.

        Raises BoardNotFound, BoardGone, BoardBusy (another job has it), GrantStale (lower fence).
        """
        row = self._rows.get(board_id)
        if row is None:
            raise BoardNotFound(f"this agent has no board {board_id}", board=board_id)
        highest = self._memory.fence(board_id)
        if fence < highest:
            raise GrantStale(f"{board_id} was handed out anew since", fence=fence, highest=highest)
        holding = self._holdings.get(board_id)
        if holding is not None and holding.job_id != job_id:
            raise BoardBusy(f"{board_id} is held by another job", board=board_id)
        if row.board.state is BoardState.GONE:
            raise BoardGone(f"{board_id} is not connected", board=board_id)
        self._memory.set_fence(board_id, fence)
        if holding is None:
            device = BoardDevice(
                board_id,
                row.port,
                row.board.chip,
                on_mac=self._learned,
                spool_bytes=self._spool_bytes,
            )
            self._holdings[board_id] = _Holding(job_id, device)
            self._tell()
        log.info("board.held", board_id=board_id, job_id=job_id, fence=fence)

    async def release(self, job_id: str) -> None:
        """Close what `job_id` has open on its boards and set them free."""
        for board_id, holding in list(self._holdings.items()):
            if holding.job_id == job_id:
                try:
                    await holding.device.close()
                finally:
                    del self._holdings[board_id]
                log.info("board.released", board_id=board_id, job_id=job_id)
        self._tell()

    def device(self, board_id: str, job_id: str) -> BoardDevice:
        """The board in the hands of `job_id`; BoardNotGranted for anybody else."""
        holding = self._holdings.get(board_id)
        if holding is None or holding.job_id != job_id:
            # The same answer for a board that is absent: who may not use it may not ask either.
            raise BoardNotGranted(f"this job does not hold a board {board_id}", board=board_id)
        return holding.device

    def _look(self, found: Sequence[UsbBoard], present: dict[str, bool] | None = None) -> None:
        rows: dict[str, _Row] = {}
        taken = set()
        for listed in self._static:
            there = (
                present.get(listed.port, False)
                if present is not None
                else ports.is_present(listed.port)
            )
            known = self._memory.known(listed.id)
            taken.add(listed.port)
            rows[listed.id] = _Row(
                Board(
                    id=listed.id,
                    chip=listed.chip or known.get("chip"),
                    labels=listed.labels,
                    state=BoardState.FREE if there else BoardState.GONE,
                    description=listed.port.partition("://")[0] if "://" in listed.port else "",
                    mac=known.get("mac"),
                ),
                listed.port,
            )
        for usb in found:
            if usb.port in taken:
                continue
            known = self._memory.known(usb.key)
            board_id = self._id_of(usb.key, known.get("mac"))
            rows[board_id] = _Row(
                Board(
                    id=board_id,
                    chip=known.get("chip"),
                    description=usb.description,
                    mac=known.get("mac"),
                ),
                usb.port,
                usb.key,
            )
        self._rows = rows
        self._tell()

    def _id_of(self, key: str, mac: str | None) -> str:
        """The MAC's id, but not while a job holds the board under its USB one."""
        if mac is None or key in self._holdings:
            return key
        return "mac-" + mac.replace(":", "")

    def _learned(self, board_id: str, mac: str, chip: str) -> None:
        row = self._rows.get(board_id)
        if row is not None:
            self._memory.learn(row.key or board_id, mac=mac, chip=chip)
            learned = {"mac": mac, "chip": row.board.chip or chip}
            row.board = row.board.model_copy(update=learned)
            self._tell()

    def _shown(self, board: Board) -> Board:
        if board.id in self._holdings and board.state is BoardState.FREE:
            return board.model_copy(update={"state": BoardState.HELD})
        return board

    def _tell(self) -> None:
        boards = self.boards()
        if boards != self._told:
            self._told = boards
            self._on_change(boards)


class _Memory:
    """boards.json: the highest fence of each board, and what was read from it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fences: dict[str, int] = {}
        self._known: dict[str, dict[str, str]] = {}
        try:
            data = json.loads(path.read_text())
            self._fences = {str(key): int(value) for key, value in data["fences"].items()}
            self._known = {str(key): dict(value) for key, value in data["known"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            log.warning("boards.memory_damaged", path=str(path), detail=str(exc))

    def fence(self, board_id: str) -> int:
        return self._fences.get(board_id, 0)

    def set_fence(self, board_id: str, fence: int) -> None:
        if self._fences.get(board_id) != fence:
            self._fences[board_id] = fence
            self._save()

    def known(self, key: str) -> dict[str, str]:
        return self._known.get(key, {})

    def learn(self, key: str, *, mac: str, chip: str) -> None:
        if self._known.get(key) != {"mac": mac, "chip": chip}:
            self._known[key] = {"mac": mac, "chip": chip}
            self._save()

    def _save(self) -> None:
        data = {"fences": self._fences, "known": self._known}
        write_atomic(self._path, json.dumps(data, indent=2).encode(), mode=0o600)
