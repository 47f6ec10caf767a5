"""
A virtual board in a process of its own, for tests and demos:

    async with virtual_board(chip="esp32p4", unplug_after_bytes=5000) as board:
        ... board.url, board.pty, await board.read_flash(0x10000, 4096) ...

The process ends with the block, and also when the program that started it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aegis_protocol.errors import ErrorReply, from_body
from aegis_protocol.failures.virtual_board import BoardControlFailed, BoardDidNotStart
from pydantic import ValidationError

from aegis_agent.virtual_board.control_words import (
    MAX_LINE_BYTES,
    MAX_READ_BYTES,
    Answer,
    AskStatus,
    BoardStatus,
    ClearFaults,
    FaultName,
    ReadFlash,
    Ready,
    Replug,
    Request,
    Reset,
    SetFault,
    Unplug,
    Watch,
)

START_DEADLINE_S: Final = 20.0
ANSWER_DEADLINE_S: Final = 10.0
STOP_DEADLINE_S: Final = 5.0
STDERR_TAIL_BYTES: Final = 2000


class VirtualBoard:
    """A board that runs. `ready` is what its process said when it could be used."""

    def __init__(self, ready: Ready, lines_socket: Path | None) -> None:
        self.ready = ready
        self.url = ready.url
        self.pty = ready.pty
        self.chip = ready.chip
        self.mac = ready.mac
        self.pid = ready.pid
        self.lines_socket = lines_socket

    async def status(self) -> BoardStatus:
        return _status_of(await self._ask(AskStatus()))

    async def read_flash(self, offset: int, size: int) -> bytes:
        """Return what the flash holds, read past the board's loader and whatever runs."""
        data = bytearray()
        while len(data) < size:
            step = min(MAX_READ_BYTES, size - len(data))
            answer = await self._ask(ReadFlash(offset=offset + len(data), size=step))
            data += answer.data or b""
        return bytes(data)

    async def set_fault(self, name: FaultName, amount: float | None = None) -> None:
        await self._ask(SetFault(name=name, amount=amount))

    async def clear_faults(self) -> None:
        await self._ask(ClearFaults())

    async def unplug(self) -> None:
        await self._ask(Unplug())

    async def replug(self) -> None:
        await self._ask(Replug())

    async def reset(self) -> None:
        await self._ask(Reset())

    async def until(
        self, is_so: Callable[[BoardStatus], bool], *, deadline_s: float = ANSWER_DEADLINE_S
    ) -> BoardStatus:
        """
        Return the first status for which `is_so` holds.

        Raises
        ------
        TimeoutError   none did within `deadline_s`; the message has the last one
        """
        status: BoardStatus | None = None
        try:
            async with asyncio.timeout(deadline_s), self._control() as (reader, writer):
                _say(writer, Watch())
                while True:
                    status = _status_of(_answer(await reader.readline()))
                    if is_so(status):
                        return status
        except TimeoutError as exc:
            raise TimeoutError(f"not within {deadline_s} s; the last was {status!r}") from exc

    async def _ask(self, request: Request) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S), self._control() as (reader, writer):
                _say(writer, request)
                answer = _answer(await reader.readline())
        except TimeoutError as exc:
            raise BoardControlFailed(f"The virtual {self.chip} does not answer.") from exc
        if answer.error is not None:
            raise from_body(answer.error)
        return answer

    @asynccontextmanager
    async def _control(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.open_unix_connection(
                self.ready.control, limit=MAX_LINE_BYTES
            )
        except OSError as exc:
            raise BoardControlFailed(
                f"The virtual {self.chip} is not there: {exc.strerror}."
            ) from exc
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def virtual_board(
    *,
    chip: str = "esp32p4",
    mac: str | None = None,
    revision: str | None = None,
    flash_file: Path | None = None,
    flash_size: str | None = None,
    faults: Sequence[str] = (),
    unplug_after_bytes: int | None = None,
    has_pty: bool = False,
    has_pty_lines: bool = False,
    is_paced: bool = False,
    cpu_budget: float = 0.5,
    folder: Path | None = None,
) -> AsyncIterator[VirtualBoard]:
    """
    Start a board and wait until it can be used; end its process, whatever happens.

    faults          as `--fault` takes them: `NAME` or `NAME:NUMBER`
    has_pty         offer a pty, at `board.pty`
    has_pty_lines   let that pty's modem lines come by the socket `board.lines_socket`
    folder          where its sockets and links are made; None: a folder of its own, removed after

    Raises
    ------
    BoardDidNotStart     its process ended or said nothing in time; the message has its last words
    VirtualBoardError    the settings make no board (its own error, as its process said it)
    """
    own = Path(tempfile.mkdtemp(prefix="aegis-board-", dir=folder))
    lines_socket = own / "lines" if has_pty_lines else None
    options: list[tuple[str, object]] = [("--chip", chip), ("--listen", own / "port")]
    options += [("--mac", mac), ("--revision", revision), ("--flash-file", flash_file)]
    options += [("--flash-size", flash_size), ("--cpu-budget", cpu_budget)]
    options += [("--pty", own / "pty" if has_pty or has_pty_lines else None)]
    options += [("--pty-lines", lines_socket)]
    options += [("--fault", fault) for fault in faults]
    if unplug_after_bytes is not None:
        options.append(("--fault", f"{FaultName.UNPLUG_AFTER}:{unplug_after_bytes}"))
    argv = [sys.executable, "-m", "aegis_agent.virtual_board", "--json", "--until-stdin-closes"]
    argv += [str(part) for name, value in options if value is not None for part in (name, value)]
    if is_paced:
        argv.append("--pace")
    try:
        async with _process(argv, own / "stderr") as ready:
            yield VirtualBoard(ready, lines_socket)
    finally:
        shutil.rmtree(own, ignore_errors=True)


@asynccontextmanager
async def _process(argv: Sequence[str], stderr_file: Path) -> AsyncIterator[Ready]:
    with stderr_file.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield await _until_ready(process, stderr_file)
    finally:
        await _stop(process)


async def _until_ready(process: asyncio.subprocess.Process, stderr_file: Path) -> Ready:
    if process.stdout is None:
        raise RuntimeError("a process without stdout")
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            line = await process.stdout.readline()
            if not line:
                await process.wait()
    except TimeoutError as exc:
        raise BoardDidNotStart(
            f"The board's process said nothing within {START_DEADLINE_S:.0f} s."
        ) from exc
    try:
        return Ready.model_validate_json(line)
    except ValidationError as exc:
        words = _tail(stderr_file)
        try:
            error = ErrorReply.model_validate_json(words.rpartition("\n")[2]).error
        except ValidationError:
            raise BoardDidNotStart(
                f"The board's process ended with {process.returncode}: {words}"
            ) from exc
        raise from_body(error) from None


def _tail(stderr_file: Path) -> str:
    return stderr_file.read_bytes()[-STDERR_TAIL_BYTES:].decode(errors="replace").strip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the process and whatever it started; it leads a group of its own."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(STOP_DEADLINE_S):
            await process.wait()
    except (TimeoutError, ProcessLookupError):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _say(writer: asyncio.StreamWriter, request: Request) -> None:
    writer.write(request.model_dump_json().encode() + b"\n")


def _answer(line: bytes) -> Answer:
    try:
        return Answer.model_validate_json(line)
    except ValidationError as exc:
        raise BoardControlFailed("The virtual board ended its control socket.") from exc


def _status_of(answer: Answer) -> BoardStatus:
    if answer.status is None:
        raise BoardControlFailed("The virtual board's answer has no status.")
    return answer.status
