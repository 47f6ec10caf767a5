"""Firmware onto a board: choose the agent that has both, or send the bundle, then write it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import BoardNotFound
from aegis_protocol.http_api.boards import BoardRow
from aegis_protocol.rpc import (
    FlashResult,
    FlashStartParams,
    FlashStartResult,
    TaskInfo,
    TaskParams,
    TransferRef,
)

from aegis_client.board_choice import check_chip, fits
from aegis_client.build import failure
from aegis_client.connection import Connection
from aegis_client.firmware import Firmware
from aegis_client.paired import requested_with
from aegis_client.reporter import Reporter
from aegis_client.session import Session
from aegis_client.upload import request_s

START_S: Final = 120.0
CANCEL_S: Final = 3.0

_log = structlog.get_logger("aegis_client.flash")


@dataclass(frozen=True)
class FlashOptions:
    """baud: of the serial port while flashing. erase_all: the whole flash first."""

    baud: int = 460_800
    erase_all: bool = False


@dataclass(frozen=True)
class FlashSource:
    """What `flash.start` is told: a build on that very agent, or a bundle that is sent to it."""

    task_id: str | None = None
    bundle: Path | None = None


@dataclass(frozen=True)
class FlashReport:
    job_id: str
    agent_name: str
    board: Board
    task: TaskInfo
    result: FlashResult

    def as_json(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "task_id": self.task.task_id,
            "state": str(self.task.state),
            "agent_name": self.agent_name,
            **self.result.model_dump(mode="json"),
        }


def choose_source(
    firmware: Firmware, wish: BoardWish, rows: Sequence[BoardRow]
) -> tuple[FlashSource, str | None]:
    """
    Return what to flash from, and the agent that it must be, if it must be one.

    A build is flashed where it was made when that agent has such a board; elsewhere its bundle
    is sent. Raises BoardNotFound when neither is possible.
    """
    record = firmware.record
    if record is None:
        return FlashSource(bundle=firmware.bundle), None
    there = [row for row in rows if row.agent_id == record.agent_id and fits(row.board, wish)]
    elsewhere = [row for row in rows if row.agent_id != record.agent_id and fits(row.board, wish)]
    if elsewhere and not there and firmware.bundle is not None:
        return FlashSource(bundle=firmware.bundle), None
    if elsewhere and not there:
        raise BoardNotFound(
            f"the board is on {elsewhere[0].agent_name}, and the build on {record.agent_name}",
            remedy="Fetch the build first: `espctl download`, then flash its folder.",
        )
    return FlashSource(task_id=record.task_id), record.agent_id


def granted_board(session: Session) -> Board:
    """The board that this session holds. Raises BoardNotFound."""
    if not session.boards:
        raise BoardNotFound("the job holds no board", job_id=session.job_id)
    return session.boards[0]


async def flash(
    session: Session,
    source: FlashSource,
    target: str,
    options: FlashOptions,
    reporter: Reporter,
) -> FlashReport:
    """
    Write and verify on the session's board. A canceled caller cancels the flash.

    Raises ChipMismatch before anything is written, and how the flash failed.
    """
    board = granted_board(session)
    if target:
        check_chip(board, target)
    started = await _started(session, source, board, options)
    try:
        task = await session.task_ended(started.task_id)
    except asyncio.CancelledError:
        await _cancel(session, started.task_id)
        raise
    error = failure(task)
    if error is not None:
        raise error
    result = task.flash or FlashResult(board_id=board.id, chip=board.chip or "")
    return FlashReport(session.job_id, session.agent.name, board, task, result)


async def _started(
    session: Session, source: FlashSource, board: Board, options: FlashOptions
) -> FlashStartResult:
    before = frozenset(session.tasks)
    params = FlashStartParams(
        board_id=board.id,
        task_id=source.task_id,
        baud=options.baud,
        erase_all=options.erase_all,
    )
    data = b"" if source.bundle is None else await asyncio.to_thread(source.bundle.read_bytes)

    async def step(connection: Connection) -> FlashStartResult:
        begun = session.new_task("flash", before)
        if begun is not None:
            # It was started on a connection that was lost before it could say so.
            return FlashStartResult(task_id=begun.task_id)
        if source.bundle is None:
            return await connection.call(
                "flash.start", params, FlashStartResult, deadline_s=START_S
            )
        digest = sha256(data).hexdigest()
        number = connection.source.next_number()
        ref = TransferRef(transfer=number, size_bytes=len(data), sha256=digest)
        return await requested_with(
            connection.call(
                "flash.start",
                params.model_copy(update={"bundle": ref}),
                FlashStartResult,
                deadline_s=request_s(len(data)),
            ),
            connection.source.send_file(ref.transfer, data, sha256=digest),
        )

    return await session.repeated(step)


async def _cancel(session: Session, task_id: str) -> None:
    try:
        params = TaskParams(task_id=task_id)
        await session.call_now("flash.cancel", params, TaskInfo, deadline_s=CANCEL_S)
    except AegisError as exc:
        _log.warning("flash.not_canceled", task_id=task_id, code=exc.code)
