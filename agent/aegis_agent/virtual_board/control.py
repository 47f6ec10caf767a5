# SPDX-License-Identifier: GPL-2.0-or-later
"""The board's control socket: its status, its flash, its faults and its plug."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, assert_never

from aegis_protocol.failures.virtual_board import BadBoardSetting
from pydantic import ValidationError

from aegis_agent.virtual_board.board import Board
from aegis_agent.virtual_board.control_words import (
    MAX_LINE_BYTES,
    REQUEST,
    Answer,
    AskStatus,
    BoardStatus,
    ClearFaults,
    ReadFlash,
    Replug,
    Request,
    Reset,
    SetFault,
    Unplug,
    Watch,
)
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import OutOfFlash
from aegis_agent.virtual_board.unix_socket import close_clients, listen

WATCH_STEP_S: Final = 0.1  # byte counters move without a ring of the bell


class Bell:
    """Wakes who waits for a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, timeout_s: float) -> None:
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass


class Plug(Protocol):
    def unplug(self) -> None: ...

    def replug(self) -> None: ...


class ControlServer:
    def __init__(
        self,
        path: Path,
        board: Board,
        faults: Faults,
        plug: Plug,
        status: Callable[[], BoardStatus],
        bell: Bell,
    ) -> None:
        self._path = path
        self._board = board
        self._faults = faults
        self._plug = plug
        self._status = status
        self._bell = bell
        self._listener: socket.socket | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def open(self) -> None:
        self._listener = listen(self._path)

    async def serve(self) -> None:
        server = await asyncio.start_unix_server(
            self._serve_client, sock=self._listener, limit=MAX_LINE_BYTES
        )
        try:
            await server.serve_forever()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            await close_clients(self._clients)

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("served outside of a task")
        self._clients[task] = writer
        try:
            await self._talk(reader, writer)
        except (ConnectionError, ValueError):  # ValueError: a line beyond the limit
            pass
        finally:
            del self._clients[task]
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                request = REQUEST.validate_json(line)
            except ValidationError as exc:
                bad = BadBoardSetting(f"No request of a board: {exc.errors()[0]['msg']}.")
                await _say(writer, Answer(error=bad.body()))
                continue
            if isinstance(request, Watch):
                await self._watch(writer)
                return
            await _say(writer, self._act(request))

    def _act(self, request: Request) -> Answer:
        data = None
        match request:
            case AskStatus() | Watch():
                pass
            case ReadFlash():
                try:
                    data = self._board.flash.read(request.offset, request.size)
                except OutOfFlash as exc:
                    return Answer(error=BadBoardSetting(f"{exc}.").body())
            case SetFault():
                self._faults.set(request.name, request.amount)
                self._bell.ring()
            case ClearFaults():
                self._faults.clear()
                self._bell.ring()
            case Unplug():
                self._plug.unplug()
            case Replug():
                self._plug.replug()
            case Reset():
                self._board.reset()
            case _:
                assert_never(request)
        return answer_with(self._status(), data)

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        told: BoardStatus | None = None
        while not writer.transport.is_closing():
            now = self._status()
            if now != told:
                await _say(writer, Answer(status=now))
                told = now
            await self._bell.wait(WATCH_STEP_S)


def answer_with(status: BoardStatus, data: bytes | None) -> Answer:
    answer = Answer(status=status)
    return answer if data is None else answer.model_copy(update={"data": data})


async def _say(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer.model_dump_json(exclude_none=True).encode() + b"\n")
    await writer.drain()
