"""The boards of a machine: found, named, held under fences, given back, and remembered."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from aegis_agent.boards import BoardRegistry
from aegis_agent.boards.console import ConsoleState
from aegis_agent.config import StaticBoard
from aegis_agent.virtual_board.spawn import virtual_board
from aegis_protocol.board import Board
from aegis_protocol.failures.board import BoardBusy, BoardGone, BoardNotFound, BoardNotGranted
from aegis_protocol.failures.grant import GrantStale
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.states import BoardState
from board_stand import Told, blob, job_of, until_said
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo
from waiting import until

CP210X = (0x10C4, 0xEA60)
NATIVE = (0x303A, 0x1001)


class Usb:
    """What is plugged into this machine, as pyserial would list it: the seam below discovery."""

    def __init__(self) -> None:
        self.ports: list[ListPortInfo] = []
        self.failure: OSError | None = None

    def plug(
        self,
        device: str,
        kind: tuple[int, int] = CP210X,
        *,
        serial_number: str | None = None,
        location: str | None = "1-1",
        product: str | None = None,
    ) -> None:
        port = ListPortInfo(device)
        port.vid, port.pid = kind
        port.serial_number, port.location = serial_number, location
        port.manufacturer, port.product = None, product
        self.ports.append(port)

    def comports(self) -> Sequence[ListPortInfo]:
        if self.failure is not None:
            raise self.failure
        return list(self.ports)


@pytest.fixture
def usb(monkeypatch: pytest.MonkeyPatch) -> Usb:
    usb = Usb()
    monkeypatch.setattr(list_ports, "comports", usb.comports)
    return usb


class Kept:
    """Every list of boards that a registry told of."""

    def __init__(self) -> None:
        self.lists: list[tuple[Board, ...]] = []

    def __call__(self, boards: tuple[Board, ...]) -> None:
        self.lists.append(boards)

    def states(self, board_id: str) -> list[BoardState]:
        return [board.state for boards in self.lists for board in boards if board.id == board_id]


def registry_of(
    folder: Path,
    static: Sequence[StaticBoard] = (),
    *,
    discover: bool = True,
    on_change: Kept | None = None,
    poll_s: float = 0.02,
) -> BoardRegistry:
    return BoardRegistry(
        static,
        discover=discover,
        state_dir=folder,
        on_change=on_change or Kept(),
        spool_bytes=65_536,
        poll_s=poll_s,
    )


@contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def bench(port: str, **more: str) -> StaticBoard:
    return StaticBoard.model_validate({"id": "bench-1", "port": port, **more})


async def ids(registry: BoardRegistry) -> list[str]:
    return [board.id for board in await registry.looked()]


async def test_a_usb_board_is_named_by_its_serial_number_or_else_by_its_socket(
    usb: Usb, tmp: Path
) -> None:
    registry = registry_of(tmp)
    usb.plug("/dev/ttyACM0", NATIVE, serial_number="60:55:F9:12:34:56", product="USB JTAG")
    usb.plug("/dev/ttyUSB0", serial_number="0001", location="1-2")
    usb.plug("/dev/ttyUSB1", (0x1A86, 0x7523), location="1-3.1")
    board = ListPortInfo("/dev/ttyS0")
    usb.ports.append(board)
    found = ["usb-303a-1001-60:55:F9:12:34:56", "usb-10c4-ea60-at-1-2", "usb-1a86-7523-at-1-3.1"]
    assert await ids(registry) == found
    assert registry.boards()[0].description == "USB JTAG"
    usb.ports[0].device, usb.ports[1].device = "/dev/ttyACM7", "/dev/ttyUSB5"
    assert sorted(await ids(registry)) == sorted(found), "whatever their ports are called"


async def test_boards_with_the_same_serial_number_are_told_apart_by_their_sockets(
    usb: Usb, tmp: Path
) -> None:
    usb.plug("/dev/ttyUSB0", serial_number="CLONE", location="1-1")
    usb.plug("/dev/ttyUSB1", serial_number="CLONE", location="1-2")
    assert await ids(registry_of(tmp)) == ["usb-10c4-ea60-at-1-1", "usb-10c4-ea60-at-1-2"]


async def test_a_board_of_the_list_is_not_listed_again_for_its_port(usb: Usb, tmp: Path) -> None:
    with terminal() as (_, port):
        (tmp / "by-id").symlink_to(port)
        usb.plug(port, serial_number="A1")
        registry = registry_of(tmp, [bench(f"{tmp}/by-id", chip="esp32p4")])
        assert await ids(registry) == ["bench-1"]
        assert registry.boards()[0].state is BoardState.FREE


async def test_a_port_that_comes_and_goes_is_told_of(tmp: Path) -> None:
    async with virtual_board(chip="esp32") as board:
        kept = Kept()
        registry = registry_of(tmp, [bench(board.url)], discover=False, on_change=kept)
        running = asyncio.create_task(registry.run())
        await until(lambda: kept.states("bench-1") == [BoardState.FREE])
        registry.hold("bench-1", "job-1", 1)
        await board.unplug()
        await until(lambda: kept.states("bench-1")[-1] is BoardState.GONE)
        await board.replug()
        await until(lambda: kept.states("bench-1")[-1] is BoardState.HELD)
        await registry.release("job-1")
        assert kept.states("bench-1") == [
            *(BoardState.FREE, BoardState.HELD, BoardState.GONE),
            *(BoardState.HELD, BoardState.FREE),
        ]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_device_that_goes_while_it_is_looked_at_ends_nothing(usb: Usb, tmp: Path) -> None:
    kept = Kept()
    registry = registry_of(tmp, on_change=kept)
    usb.failure = OSError(errno.ENODEV, "gone")
    running = asyncio.create_task(registry.run())
    usb.plug("/dev/ttyUSB0", serial_number="A1")
    usb.failure = None
    await until(lambda: kept.lists)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_board_has_one_holder_and_nobody_else_may_even_ask(tmp: Path) -> None:
    with terminal() as (_, port):
        kept = Kept()
        registry = registry_of(tmp, [bench(port)], discover=False, on_change=kept)
        registry.hold("bench-1", "job-1", 5)
        registry.hold("bench-1", "job-1", 5)
        with pytest.raises(BoardBusy):
            registry.hold("bench-1", "job-2", 6)
        assert registry.device("bench-1", "job-1").board_id == "bench-1"
        with pytest.raises(BoardNotGranted) as anothers:
            registry.device("bench-1", "job-2")
        with pytest.raises(BoardNotGranted) as absent:
            registry.device("bench-9", "job-2")
        assert anothers.value.message.replace("bench-1", "bench-9") == absent.value.message
        await registry.release("job-1")
        await registry.release("job-1")
        with pytest.raises(BoardNotGranted):
            registry.device("bench-1", "job-1")
        registry.hold("bench-1", "job-2", 6)
        states = [BoardState.FREE, BoardState.HELD, BoardState.FREE, BoardState.HELD]
        assert kept.states("bench-1") == states


async def test_a_lower_fence_is_refused_also_after_a_restart(tmp: Path) -> None:
    with terminal() as (_, port):
        first = registry_of(tmp, [bench(port)], discover=False)
        first.hold("bench-1", "job-1", 7)
        again = registry_of(tmp, [bench(port)], discover=False)
        with pytest.raises(GrantStale) as caught:
            again.hold("bench-1", "job-2", 6)
        assert caught.value.facts == {"fence": 6, "highest": 7}
        again.hold("bench-1", "job-2", 8)
        await again.release("job-2")
        again.void("bench-1", 8)  # as a kick does: the number itself serves no more
        again.void("bench-9", 3)  # a board that was never held here is nobody's to take back
        with pytest.raises(GrantStale):
            registry_of(tmp, [bench(port)], discover=False).hold("bench-1", "job-2", 8)
        registry_of(tmp, [bench(port)], discover=False).hold("bench-1", "job-3", 9)
    assert (tmp / "boards.json").stat().st_mode & 0o777 == 0o600


async def test_a_board_that_is_not_there_can_not_be_held(usb: Usb, tmp: Path) -> None:
    registry = registry_of(tmp, [bench(f"{tmp}/none")])
    with pytest.raises(BoardGone):
        registry.hold("bench-1", "job-1", 1)
    with pytest.raises(BoardNotFound):
        registry.hold("bench-9", "job-1", 1)
    usb.plug("/dev/ttyUSB0", serial_number="A1")
    await registry.looked()
    registry.hold("usb-10c4-ea60-A1", "job-1", 1)
    usb.ports.clear()
    boards = await registry.looked()
    assert [board.state for board in boards] == [BoardState.GONE, BoardState.GONE]
    await registry.release("job-1")
    assert await ids(registry) == ["bench-1"]
    with pytest.raises(BoardGone):
        registry.hold("usb-10c4-ea60-A1", "job-2", 2)


async def test_a_fence_that_can_not_be_kept_is_no_holding(tmp: Path) -> None:
    with terminal() as (_, port):
        registry = registry_of(tmp / "state", [bench(port)], discover=False)
        with pytest.raises(DiskFull):  # the folder is not there
            registry.hold("bench-1", "job-1", 1)
        assert registry.boards()[0].state is BoardState.FREE
        (tmp / "state").mkdir()
        registry.hold("bench-1", "job-1", 1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"fences": {"a": "b"}}', '{"known": {"a": {"mac": "; rm"}}}']
)
async def test_a_damaged_memory_is_put_aside(tmp: Path, text: str) -> None:
    (tmp / "boards.json").write_text(text)
    with terminal() as (_, port):
        registry = registry_of(tmp, [bench(port)], discover=False)
        registry.hold("bench-1", "job-1", 1)
    assert (tmp / "boards.json.damaged").read_text() == text
    assert json.loads((tmp / "boards.json").read_text())["fences"] == {"bench-1": 1}


async def test_a_flash_teaches_the_boards_identity_which_is_its_id_when_it_is_free(
    usb: Usb, tmp: Path
) -> None:
    async with virtual_board(chip="esp32", has_pty=True, mac="60:55:f9:12:34:56") as board:
        assert board.pty is not None
        usb.plug(board.pty, location="1-1")
        kept = Kept()
        registry = registry_of(tmp, on_change=kept)
        assert await ids(registry) == ["usb-10c4-ea60-at-1-1"]
        registry.hold("usb-10c4-ea60-at-1-1", "job-1", 1)
        device = registry.device("usb-10c4-ea60-at-1-1", "job-1")
        await device.flash(job_of([blob(tmp, 5000)], target="esp32"), Told())
        (now,) = registry.boards()
        assert (now.id, now.mac, now.chip) == ("usb-10c4-ea60-at-1-1", board.mac, "esp32")
        assert kept.lists[-1] == (now,)
        await registry.release("job-1")
        assert kept.lists[-1][0].id == "mac-6055f9123456"
        again = registry_of(tmp)
        assert await ids(again) == ["mac-6055f9123456"]
        # What is flashed under the MAC's id is that very board: another one has come there since.
        again.hold("mac-6055f9123456", "job-2", 1)
    async with virtual_board(chip="esp32", has_pty=True, mac="60:55:f9:99:99:99") as other:
        assert other.pty is not None
        usb.ports[0].device = other.pty
        device = again.device("mac-6055f9123456", "job-2")
        with pytest.raises(BoardNotGranted) as caught:
            await device.flash(job_of([blob(tmp, 5000)], target="esp32"), Told())
        assert caught.value.facts == {"mac": other.mac, "flash": "kept"}
        assert {board.id: board.state for board in again.boards()} == {
            "mac-6055f9999999": BoardState.FREE,
            "mac-6055f9123456": BoardState.GONE,
        }


@pytest.mark.long
async def test_a_chip_that_was_read_does_not_refuse_the_board_that_came_after_it(
    tmp: Path,
) -> None:
    (tmp / "boards.json").write_text(
        '{"fences": {}, "known": {"bench-1": {"mac": "60:55:f9:00:00:01", "chip": "esp32c3"}}}'
    )
    async with virtual_board(chip="esp32") as board:
        registry = registry_of(tmp, [bench(board.url)], discover=False)
        assert registry.boards()[0].chip == "esp32c3"
        registry.hold("bench-1", "job-1", 1)
        device = registry.device("bench-1", "job-1")
        await device.flash(job_of([blob(tmp, 5000)], target="esp32"), Told())
        (now,) = registry.boards()
        assert (now.chip, now.mac) == ("esp32", board.mac)


async def test_a_board_that_comes_back_under_another_name_keeps_its_console(
    usb: Usb, tmp: Path
) -> None:
    with terminal() as (first, name), terminal() as (second, other_name):
        usb.plug(name, NATIVE, serial_number="60:55:F9:12:34:56")
        registry = registry_of(tmp)
        (board_id,) = await ids(registry)
        registry.hold(board_id, "job-1", 1)
        device = registry.device(board_id, "job-1")
        console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
        os.write(first, b"before ")
        await until_said(console, "before ")
        usb.ports[0].device = other_name
        await console.pause()
        await console.resume(deadline_s=5)
        os.write(second, b"after")
        await until_said(console, "before after")
        await registry.release("job-1")
        assert console.state is ConsoleState.CLOSED


async def test_releasing_a_board_ends_the_flash_and_the_console_on_it(tmp: Path) -> None:
    async with virtual_board(chip="esp32p4") as board:
        registry = registry_of(tmp, [bench(board.url)], discover=False)
        registry.hold("bench-1", "job-1", 1)
        device = registry.device("bench-1", "job-1")
        console = await device.open_console(baud=115_200, spool_dir=tmp / "s")
        told = Told()
        flashing = asyncio.create_task(device.flash(job_of([blob(tmp, 4_000_000)]), told))
        await until(lambda: told.lines, within_s=10)
        async with asyncio.timeout(10):
            await registry.release("job-1")
        assert flashing.cancelled()
        assert console.state is ConsoleState.CLOSED
        assert registry.boards()[0].state is BoardState.FREE
        await board.until(lambda now: now.holder is None)
