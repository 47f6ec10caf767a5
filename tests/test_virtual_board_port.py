"""The port of a virtual board as a program opens it: the URL handler, the pty, and their rules."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import serial
from aegis_agent import serial_urls
from aegis_agent.virtual_board.board import Board
from aegis_agent.virtual_board.chips import CHIPS
from aegis_agent.virtual_board.control_words import BoardState, Holder
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import NorFlash
from aegis_agent.virtual_board.port import CONSOLE_QUEUE_BYTES, Port
from aegis_agent.virtual_board.spawn import VirtualBoard, virtual_board
from waiting import until


@pytest.fixture
async def board() -> AsyncIterator[VirtualBoard]:
    """An esp32 with an erased flash: it complains about that on its UART, again and again."""
    serial_urls.register()
    async with virtual_board(chip="esp32", has_pty=True) as board:
        yield board


@contextmanager
def opened(url: str, *, dtr: bool = False, rts: bool = False, **settings: Any) -> Iterator[Any]:
    port = serial.serial_for_url(url, do_not_open=True, **settings)
    port.dtr, port.rts = dtr, rts
    port.open()
    try:
        yield port
    finally:
        port.close()


async def test_a_port_opened_with_its_lines_let_go_does_not_reset(board: VirtualBoard) -> None:
    before = await board.status()
    with opened(board.url):
        status = await board.until(lambda now: now.holder is not None)
        assert (status.dtr, status.rts) == (False, False)
    status = await board.until(lambda now: now.holder is None)
    assert status.resets == before.resets


async def test_a_port_opened_as_programs_do_does_not_reset_either(board: VirtualBoard) -> None:
    before = await board.status()
    with opened(board.url, dtr=True, rts=True):
        status = await board.until(lambda now: now.dtr and now.rts)
    status = await board.until(lambda now: now.holder is None)
    assert (status.dtr, status.rts, status.resets) == (False, False, before.resets)


async def test_rts_alone_holds_the_board_in_reset_and_letting_go_boots_it(
    board: VirtualBoard,
) -> None:
    before = await board.status()
    with opened(board.url, timeout=10) as port:
        port.rts = True
        await board.until(lambda now: now.state is BoardState.RESET)
        port.reset_input_buffer()
        port.rts = False
        await board.until(lambda now: now.boots == before.boots + 1)
        banner = await asyncio.to_thread(port.read, 60)
        assert banner.startswith(b"ets Jul 29 2019")
        assert b"rst:0x1" in banner


async def test_a_second_program_is_told_who_has_the_port(board: VirtualBoard) -> None:
    with opened(board.url), pytest.raises(serial.SerialException) as caught, opened(board.url):
        pass
    assert caught.value.errno == errno.EBUSY
    assert f"in use by process {os.getpid()}" in str(caught.value)
    for _ in range(20):  # closed here and opened there at once, it is never busy
        with opened(board.url):
            pass


async def test_what_is_no_board_is_refused_with_a_reason(tmp: Path) -> None:
    serial_urls.register()
    for url, reason in (
        (f"virtual://{tmp}/absent", "No such file"),
        ("virtual://host/path", "no port of a virtual board"),
        ("virtual:///path?x=1", "no port of a virtual board"),
    ):
        with pytest.raises(serial.SerialException, match=reason), opened(url):
            pass
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp}/other")
    listener.listen()

    def answer() -> None:
        with listener.accept()[0] as other:
            other.recv(100)
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(serial.SerialException, match="no virtual board"):
        with opened(f"virtual://{tmp}/other"):
            pass
    thread.join()
    listener.close()


async def test_reads_keep_their_time_limits(board: VirtualBoard) -> None:
    with opened(board.url, timeout=0) as port:
        port.rts = True  # in reset it says nothing
        await board.until(lambda now: now.state is BoardState.RESET)
        port.reset_input_buffer()
        assert port.read(10) == b""
        port.timeout = 0.2
        began = time.monotonic()
        assert port.read(10) == b""
        assert 0.2 <= time.monotonic() - began < 2
        assert port.in_waiting == 0
        port.rts = False
        await board.until(lambda now: now.state is BoardState.RUNNING)
        port.timeout = None
        assert len(await asyncio.to_thread(port.read, 100)) == 100


async def test_its_descriptor_is_readable_exactly_while_bytes_wait(board: VirtualBoard) -> None:
    with opened(board.url, timeout=0) as port:
        port.rts = True
        await board.until(lambda now: now.state is BoardState.RESET)
        port.reset_input_buffer()
        assert not select.select([port.fileno()], [], [], 0)[0]
        port.rts = False
        await until(lambda: select.select([port.fileno()], [], [], 0)[0])
        assert port.in_waiting > 0
        assert port.read(1)
        assert port.in_waiting > 0


async def test_a_read_in_a_thread_ends_when_it_is_canceled_or_the_port_closed(
    board: VirtualBoard,
) -> None:
    with opened(board.url, timeout=None) as port:
        port.rts = True
        await board.until(lambda now: now.state is BoardState.RESET)
        port.reset_input_buffer()
        reading = asyncio.create_task(asyncio.to_thread(port.read, 10))
        await board.until(lambda now: now.holder is not None)
        port.cancel_read()
        assert await asyncio.wait_for(reading, 5) == b""
        reading = asyncio.create_task(asyncio.to_thread(port.read, 10))
        port.close()
        with pytest.raises(serial.SerialException):
            await asyncio.wait_for(reading, 5)


async def test_a_board_that_is_pulled_out_ends_reads_and_writes(board: VirtualBoard) -> None:
    with opened(board.url, timeout=5) as port:
        await board.until(lambda now: now.holder is not None)
        await board.unplug()
        with pytest.raises(serial.SerialException, match="the virtual board is gone"):
            while port.read(100):
                pass
        with pytest.raises(serial.SerialException, match="the virtual board is gone"):
            while True:
                port.write(b"x" * 1000)
    with pytest.raises(serial.SerialException), opened(board.url):
        pass
    assert board.pty is not None
    await until(lambda: not Path(str(board.pty)).is_symlink())
    await board.replug()
    await board.until(lambda now: now.plugged and now.generation == 2)
    with opened(board.url):
        pass


async def test_the_rate_reaches_the_board(board: VirtualBoard) -> None:
    with opened(board.url, baudrate=74_880) as port:
        await board.until(lambda now: now.host_baud == 74_880)
        port.baudrate = 921_600
        await board.until(lambda now: now.host_baud == 921_600)


async def test_a_program_on_the_pty_keeps_others_out_until_it_closes_it(
    board: VirtualBoard,
) -> None:
    assert board.pty is not None
    with opened(board.pty, baudrate=115_200, timeout=5) as terminal:
        await board.until(lambda now: now.holder is not None and now.host_baud == 115_200)
        assert b"\r\n" in await asyncio.to_thread(terminal.read_until, b"\r\n")
        with pytest.raises(serial.SerialException, match="pty open"), opened(board.url):
            pass
    await board.until(lambda now: now.holder is None)
    with opened(board.url, timeout=5):
        await board.until(lambda now: now.holder is not None)
        with opened(board.pty, timeout=5) as terminal:
            notice = await asyncio.to_thread(terminal.read_until, b"\n")
            assert f"in use by process {os.getpid()}".encode() in notice


async def test_a_pty_that_nobody_reads_does_not_stop_the_board(board: VirtualBoard) -> None:
    assert board.pty is not None
    descriptor = os.open(board.pty, os.O_RDWR | os.O_NOCTTY)
    try:
        await board.until(lambda now: now.holder is not None)
        await board.reset()
        status = await board.until(lambda now: now.sent_bytes > 100)
        assert status.state is BoardState.RUNNING
    finally:
        os.close(descriptor)
    await board.until(lambda now: now.holder is None)
    with opened(board.pty, timeout=0):
        pass


class FullOutlet:
    """A way to a holder that takes nothing off it."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def write(self, data: bytes) -> None:
        self.kept += data

    def waiting_bytes(self) -> int:
        return len(self.kept)


class Idle:
    """A program that does nothing: what boots where a test is not about that."""

    def feed(self, data: bytes) -> None:
        pass

    def stop(self) -> None:
        pass


async def test_what_a_slow_reader_leaves_is_dropped_and_counted() -> None:
    faults = Faults()
    port = Port(faults, is_paced=False, on_unplug=lambda: None, on_change=lambda: None)
    port.board = Board(
        CHIPS["esp32"],
        NorFlash(bytearray(65_536)),
        mac=bytes(6),
        revision="3.1",
        faults=faults,
        boot=lambda *_, **__: Idle(),
        cpu_budget=0.5,
        send=port.transmit,
        on_change=lambda: None,
        on_reset=lambda: None,
    )
    port.plug()
    port.board.power_on()
    outlet = FullOutlet()
    port.take(Holder(by="pty"), outlet, None, 115_200)
    for _ in range(3):
        port.transmit(b"x" * 50_000)
    assert len(outlet.kept) == CONSOLE_QUEUE_BYTES
    assert port.dropped_bytes == 150_000 - CONSOLE_QUEUE_BYTES
    assert port.sent_bytes == CONSOLE_QUEUE_BYTES
