"""A board's console: whole from reset on, shared with a flash, and not to be shaken off."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
from aegis_agent.boards import Console, ports
from aegis_agent.boards.console import ConsoleState
from aegis_agent.boards.pump import TYPED_BYTES
from aegis_agent.virtual_board.control_words import BoardState, FaultName
from aegis_agent.virtual_board.spawn import VirtualBoard, virtual_board
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardError,
    BoardGone,
    NoResetLines,
)
from aegis_protocol.failures.source import DiskFull
from board_stand import (
    Firmware,
    Told,
    blob,
    held,
    hello,
    job_of,
    rfc2217_server,
    running,
    said,
    until_said,
)
from fixtures_platformio import platformio_home
from waiting import until

__all__ = ["hello", "platformio_home"]

BANNER = r"ESP-ROM:esp32p4"


@pytest.fixture
async def board(hello: Firmware, tmp: Path) -> AsyncIterator[VirtualBoard]:
    async with running(hello, tmp) as board:
        yield board


@contextmanager
def plain_pty() -> Iterator[tuple[int, str]]:
    """A terminal without modem lines, and the end that plays the board."""
    ours, theirs = pty.openpty()
    try:
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@asynccontextmanager
async def closing(console: Console) -> AsyncIterator[Console]:
    try:
        yield console
    finally:
        await console.close()


async def test_a_console_has_the_boot_from_the_reset_on_and_a_typed_line_is_answered(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    before = await board.status()
    device = held(board)
    async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
        assert (await board.status()).resets == before.resets, "opening it resets nothing"
        await device.reset()
        boot = await until_said(console, BANNER + r"[^#]*hello from esp32p4\r\n")
        assert hello.elf_sha256 in boot.group()
        console.write(b"good day\r")
        await until_said(console, r"you typed: good day\r\n")


async def test_a_flash_takes_the_port_of_an_open_console_and_gives_it_back(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    device = held(board)
    async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
        await board.until(lambda now: now.holder is not None and now.holder.pid == os.getpid())
        told = Told()
        flashing = asyncio.create_task(
            device.flash(job_of([*hello.job.images, blob(tmp, 500_000, offset=0x100000)]), told)
        )
        await until(lambda: told.lines, within_s=10)
        status = await board.status()
        states = [console.state]
        assert status.holder is not None
        assert status.holder.pid != os.getpid()
        console.write(b"typed at the loader\r")
        seen = console.spool.end_offset
        await flashing
        states.append(console.state)
        assert states == [ConsoleState.PAUSED, ConsoleState.OPEN]
        await until_said(console, r"hello from esp32p4\r\n[^#]*count 1")
        after = said(console.spool).encode()[seen:].decode()
        assert BANNER in after
        assert "typed at the loader" not in after


@pytest.mark.long
async def test_a_flash_that_fails_gives_the_console_back_with_the_board_running(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.BAD_MD5)
    device = held(board)
    async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
        with pytest.raises(AegisError):
            await device.flash(job_of([blob(tmp, 5000, offset=0x100000)]), Told())
        await until_said(console, r"hello from esp32p4\r\n")


async def test_a_console_that_was_closed_before_is_not_waited_for_by_a_flash(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
    await console.close()
    before = await board.status()
    await device.flash(job_of([blob(tmp, 5000, offset=0x100000)]), Told())
    await board.until(lambda now: now.state is BoardState.RUNNING and now.boots == before.boots + 1)
    assert console.state is ConsoleState.CLOSED


async def test_a_console_survives_that_its_board_is_pulled_out_and_put_back(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
        await until_said(console, "count")
        await board.unplug()
        await until(lambda: console.state is ConsoleState.AWAY)
        with pytest.raises(BoardGone):
            await device.reset()
        with pytest.raises(BoardGone):
            await device.flash(job_of([blob(tmp, 5000)]), Told())
        seen = console.spool.end_offset
        await board.replug()
        await until(lambda: console.state is ConsoleState.OPEN)
        await until(lambda: console.spool.end_offset > seen)


async def test_a_console_whose_board_stays_away_ends_and_says_so(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board, console_return_s=0.3)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
    await board.unplug()
    async with asyncio.timeout(5):
        error = await console.wait_closed()
    assert isinstance(error, BoardGone)
    assert console.spool.finished
    await console.close()


async def test_a_port_that_goes_with_a_reset_is_opened_again(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.VANISH_ON_RESET, 0.3)
    device = held(board)
    async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
        await device.reset()
        await board.until(lambda now: now.generation == 2)
        await until(lambda: console.state is ConsoleState.OPEN)
        await until_said(console, "count")


async def test_a_closed_console_has_given_its_port_back(board: VirtualBoard, tmp: Path) -> None:
    device = held(board)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "a")
    with pytest.raises(BoardBusy):
        await device.open_console(baud=115_200, spool_dir=tmp / "b")
    with pytest.raises(BoardBusy):
        await held(board).open_console(baud=115_200, spool_dir=tmp / "b")
    assert not (tmp / "b").exists()
    await console.close()
    await console.close()
    assert await console.wait_closed() is None
    await board.until(lambda now: now.holder is None)
    await (await device.open_console(baud=115_200, spool_dir=tmp / "b")).close()


async def test_a_console_is_opened_at_the_rate_that_was_asked_for(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    async with closing(await device.open_console(baud=9600, spool_dir=tmp / "s")):
        await board.until(lambda now: now.host_baud == 9600)


async def test_a_device_that_is_given_back_closes_its_console(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
    await device.close()
    assert console.state is ConsoleState.CLOSED
    await board.until(lambda now: now.holder is None)


async def test_a_console_that_is_canceled_while_it_opens_leaves_no_open_port(
    board: VirtualBoard, tmp: Path
) -> None:
    process = psutil.Process(board.pid)
    process.suspend()  # the port is there, and nobody answers yet
    opening = asyncio.create_task(
        held(board).open_console(baud=115_200, spool_dir=tmp / "s"), name="opening"
    )
    await until(lambda: (tmp / "s").exists())
    opening.cancel()
    process.resume()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not (tmp / "s").exists()
    await board.until(lambda now: now.holder is None)


async def test_a_plain_pty_has_a_console_and_no_reset(tmp: Path) -> None:
    with plain_pty() as (ours, port):
        device = held(port)
        async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
            os.write(ours, b"hello\r\n")
            await until_said(console, "hello")
            console.write(b"typed")
            assert await asyncio.to_thread(os.read, ours, 64) == b"typed"
            with pytest.raises(NoResetLines):
                await device.reset()
            assert console.state is ConsoleState.OPEN
        with pytest.raises(NoResetLines):
            await device.reset()


async def test_a_board_that_floods_fills_no_more_than_the_spool_and_close_is_prompt(
    tmp: Path,
) -> None:
    flood = b"0123456789abcdef" * 256
    stop = threading.Event()

    def print_fast(fd: int) -> None:
        os.set_blocking(fd, False)
        while not stop.is_set():
            if select.select([], [fd], [], 0.05)[1]:
                os.write(fd, flood)

    with plain_pty() as (ours, port):
        device = held(port, spool_bytes=65_536)
        console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
        board = threading.Thread(target=print_fast, args=(ours,), daemon=True)
        board.start()
        await until(lambda: console.spool.end_offset > 2_000_000, within_s=20)
        kept = sum(file.stat().st_size for file in (tmp / "s").iterdir())
        assert kept <= 65_536 + 65_536 // 16
        began = time.monotonic()
        await console.close()
        assert time.monotonic() - began < 2
        stop.set()
        board.join(5)


async def test_a_port_that_takes_nothing_still_is_heard_and_closes_at_once(tmp: Path) -> None:
    with plain_pty() as (ours, port):
        device = held(port)
        console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
        for _ in range(TYPED_BYTES // 4096):
            console.write(b"x" * 4096)
        console.write(b"this is more than is kept")
        os.write(ours, b"still here\r\n")
        await until_said(console, "still here")
        began = time.monotonic()
        await console.close()
        assert time.monotonic() - began < 2


async def test_a_board_whose_process_hangs_does_not_hang_the_console(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
    os.kill(board.pid, signal.SIGSTOP)
    try:
        for _ in range(40):
            console.write(b"x" * 4096)
        began = time.monotonic()
        await console.close()
        assert time.monotonic() - began < 3
    finally:
        os.kill(board.pid, signal.SIGCONT)


async def test_a_console_on_a_full_disk_ends_with_that_reason(
    board: VirtualBoard, tmp: Path
) -> None:
    (tmp / "s").mkdir()
    (tmp / "s" / f"{0:020d}.segment").symlink_to("/dev/full")
    console = await held(board).open_console(baud=115_200, spool_dir=tmp / "s")
    async with asyncio.timeout(5):
        assert isinstance(await console.wait_closed(), DiskFull)
    await console.close()
    await board.until(lambda now: now.holder is None)


async def test_a_port_that_can_not_be_opened_is_named(board: VirtualBoard, tmp: Path) -> None:
    with pytest.raises(BoardGone):
        await held(f"{tmp}/none").open_console(baud=115_200, spool_dir=tmp / "s")
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    with pytest.raises(BoardGone):
        await held(f"socket://127.0.0.1:{port}").open_console(baud=115_200, spool_dir=tmp / "s")
    with plain_pty() as (_, name), pytest.raises(BoardError):
        await held(name).open_console(baud=-1, spool_dir=tmp / "s")
    assert not (tmp / "s").exists()


def test_the_exclusive_claim_on_a_terminal_ends_with_its_closing() -> None:
    get_exclusive = 0x80045440
    with plain_pty() as (_, name):
        watching = os.open(name, os.O_RDWR | os.O_NOCTTY)
        device = ports.open_port(name, 115_200)
        answers = [struct.unpack("i", fcntl.ioctl(watching, get_exclusive, b"\0" * 4))[0]]
        with pytest.raises(BoardBusy):
            ports.open_port(name, 115_200)
        ports.close_port(device)
        answers.append(struct.unpack("i", fcntl.ioctl(watching, get_exclusive, b"\0" * 4))[0])
        ports.close_port(ports.open_port(name, 115_200))
        os.close(watching)
    assert [bool(answer) for answer in answers] == [True, False]


async def test_a_console_on_a_bare_socket_is_heard_to_its_last_byte_and_ends_with_it(
    tmp: Path,
) -> None:
    async def emulator(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        writer.write(b"you typed " + line + b"." * 50_000 + b"the end")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(emulator, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    device = held(f"socket://127.0.0.1:{port}", console_return_s=0.2)
    console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
    with pytest.raises(NoResetLines):
        await device.reset()
    server.close()
    console.write(b"abc\n")
    async with asyncio.timeout(10):
        assert isinstance(await console.wait_closed(), BoardGone)
    assert said(console.spool) == "you typed abc\n" + "." * 50_000 + "the end"
    await console.close()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:setName:DeprecationWarning")
async def test_a_board_behind_an_rfc2217_server_is_reset_and_heard(
    board: VirtualBoard, tmp: Path
) -> None:
    async with rfc2217_server(board.url, tmp) as url:
        await board.until(lambda now: now.holder is not None)
        device = held(url)
        async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
            await device.reset()
            await until_said(console, r"hello from esp32p4\r\n")
            console.write(b"good day\r")
            await until_said(console, r"you typed: good day\r\n")


@pytest.mark.long
async def test_an_esp32_without_firmware_says_so_on_its_console(tmp: Path) -> None:
    async with virtual_board(chip="esp32") as board:
        device = held(board)
        async with closing(await device.open_console(baud=115_200, spool_dir=tmp / "s")) as console:
            await device.reset()
            await until_said(console, "invalid header: 0xffffffff")
