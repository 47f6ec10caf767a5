"""Flashing: the worker that is real esptool, a virtual board, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
import serial
from aegis_agent import serial_urls
from aegis_agent.boards.flashing import FlashLimits
from aegis_agent.virtual_board.control_words import BoardState, FaultName
from aegis_agent.virtual_board.spawn import VirtualBoard, virtual_board
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardGone,
    BoardNotGranted,
    BoardSilent,
    ChipMismatch,
    FlashFailed,
    FlashTimedOut,
    ImageInvalid,
    VerifyFailed,
)
from aegis_protocol.manifest import FlashSettings
from board_stand import Firmware, Told, blob, described, held, hello, job_of, rfc2217_server
from fixtures_platformio import platformio_home
from waiting import until

__all__ = ["hello", "platformio_home"]

ERASED = b"\xff" * 4096


@pytest.fixture
async def board() -> AsyncIterator[VirtualBoard]:
    async with virtual_board(chip="esp32p4") as board:
        yield board


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "aegis_agent.esptool_worker" in " ".join(child.cmdline())
    ]


@contextmanager
def in_use(board: VirtualBoard) -> Iterator[None]:
    serial_urls.register()
    port = serial.serial_for_url(board.url, 115_200)
    try:
        yield
    finally:
        port.close()


async def test_a_flash_is_verified_and_the_board_runs_what_was_flashed(
    board: VirtualBoard, hello: Firmware
) -> None:
    told, learned = Told(), []
    before = await board.status()
    device = held(board, learned=lambda *facts: learned.append(facts))
    result = await device.flash(hello.job, told)
    assert (result.chip, result.mac, result.elf_sha256) == ("esp32p4", board.mac, hello.elf_sha256)
    for (image, _), region in zip(hello.job.images, result.regions, strict=True):
        on_flash = await board.read_flash(image.offset, image.size_bytes)
        assert sha256(on_flash).hexdigest() == region.sha256 == image.sha256
    assert learned == [("bench-1", board.mac, "esp32p4")]
    status = await board.until(lambda now: now.holder is None)
    assert status.state is BoardState.RUNNING
    assert status.boots > before.boots
    assert workers() == []


async def test_progress_is_one_line_that_ends_whole_and_comes_ten_times_a_second_at_most(
    board: VirtualBoard, tmp: Path
) -> None:
    images = [blob(tmp, 800_000, offset=0x400000), blob(tmp, 800_000)]
    told = Told()
    await held(board).flash(job_of(images), told)
    assert told.phases() == ["connected", "write"]
    written = [line for line in told.lines if line[0] == "write"]
    total = sum(image.size_bytes for image, _ in images)
    assert {line[2] for line in written} == {total}
    assert [line[1] for line in written] == sorted(line[1] for line in written)
    assert written[-1] == ("write", total, total, "")
    assert [*dict.fromkeys(line[3] for line in written)] == ["blob-10000", "blob-400000", ""]
    for at in told.times:
        assert sum(at <= other < at + 1 for other in told.times) <= 10


async def test_a_board_of_another_chip_by_its_configuration_is_never_touched(
    board: VirtualBoard, hello: Firmware
) -> None:
    before = await board.status()
    with pytest.raises(ChipMismatch) as caught:
        await held(board, chip="esp32").flash(hello.job, Told())
    assert caught.value.facts == {"image": "esp32p4", "board": "esp32"}
    assert await board.status() == before


async def test_a_board_that_turns_out_to_be_of_another_chip_is_not_written_to(
    hello: Firmware,
) -> None:
    learned = []
    async with virtual_board(chip="esp32c3") as board:
        device = held(board, learned=lambda *facts: learned.append(facts))
        with pytest.raises(ChipMismatch) as caught:
            await device.flash(replace(hello.job, erase_all=True), Told())
        assert caught.value.facts == {"image": "esp32p4", "board": "esp32c3", "flash": "kept"}
        assert await board.read_flash(0x10000, 4096) == ERASED
        await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)
        assert learned == [("bench-1", board.mac, "esp32c3")]


@pytest.mark.long
async def test_an_application_for_another_chip_is_not_written(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    wrong = tmp / "firmware.bin"
    data = bytearray(hello.job.images[-1][1].read_bytes())
    data[12:14] = b"\x05\x00"  # an esp32c3's
    wrong.write_bytes(data)
    images = [*hello.job.images[:2], described("app", 0x10000, wrong)]
    with pytest.raises(ChipMismatch):
        await held(board).flash(job_of(images, erase_all=True), Told())
    assert await board.read_flash(0x2000, 4096) == ERASED


@pytest.mark.long
async def test_a_bootloader_that_esptool_refuses_is_for_another_chip(
    board: VirtualBoard, hello: Firmware, tmp: Path
) -> None:
    data = bytearray(hello.job.images[0][1].read_bytes())
    data[12:14] = b"\x05\x00"
    (tmp / "boot.bin").write_bytes(data)
    images = [described("a-name-of-its-own", 0x2000, tmp / "boot.bin"), blob(tmp, 5000)]
    with pytest.raises(ChipMismatch) as caught:
        await held(board).flash(job_of(images, erase_all=True), Told())
    assert caught.value.facts == {"flash": "kept"}
    data[12:14] = b"\x12\x00"
    data[15:17] = b"\xe7\x03"  # the lowest revision that it runs on: v9.99
    (tmp / "boot.bin").write_bytes(data)
    images[0] = described("a-name-of-its-own", 0x2000, tmp / "boot.bin")
    with pytest.raises(ChipMismatch, match="revision"):
        await held(board).flash(job_of(images, erase_all=True), Told())
    assert await board.read_flash(0x10000, 4096) == ERASED


async def test_another_board_at_the_port_than_the_one_that_was_granted_is_left_alone(
    board: VirtualBoard, tmp: Path
) -> None:
    with pytest.raises(BoardNotGranted) as caught:
        await held(board, mac="60:55:f9:00:00:01").flash(job_of([blob(tmp, 5000)]), Told())
    assert caught.value.facts == {"mac": board.mac, "flash": "kept"}
    assert await board.read_flash(0x10000, 4096) == ERASED
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


async def test_a_board_that_is_not_there_is_gone_at_once(tmp: Path) -> None:
    for port in (f"virtual://{tmp}/none.sock", f"{tmp}/none"):
        with pytest.raises(BoardGone):
            await held(port).flash(job_of([blob(tmp, 5000)]), Told())


async def test_a_port_that_another_program_has_is_busy_and_left_alone(
    board: VirtualBoard, tmp: Path
) -> None:
    with in_use(board):
        before = await board.until(lambda now: now.holder is not None)
        with pytest.raises(BoardBusy) as caught:
            await held(board).flash(job_of([blob(tmp, 5000)]), Told())
        assert caught.value.facts["flash"] == "kept"
        assert (await board.status()).resets == before.resets


async def test_a_flash_that_does_not_hold_what_was_written_fails_and_can_be_tried_again(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.BAD_MD5)
    job = job_of([blob(tmp, 5000)])
    device = held(board)
    with pytest.raises(VerifyFailed) as caught:
        await device.flash(job, Told())
    assert caught.value.facts["flash"] == "unknown"
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)
    await board.clear_faults()
    await device.flash(job, Told())


async def test_a_flash_that_can_not_be_written_fails(board: VirtualBoard, tmp: Path) -> None:
    await board.set_fault(FaultName.WRITE_ERROR, 20_000)
    with pytest.raises(FlashFailed) as caught:
        await held(board).flash(job_of([blob(tmp, 70_000)]), Told())
    assert caught.value.code == "flash.failed"
    assert caught.value.facts["flash"] == "unknown"
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


async def test_a_stub_that_never_greets_ends_within_its_limit_and_the_board_is_usable(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.NO_STUB_GREETING)
    device = held(board, limits=FlashLimits(stub_s=0.3))
    with pytest.raises(FlashTimedOut) as caught:
        await device.flash(job_of([blob(tmp, 5000)]), Told())
    assert caught.value.facts == {"phase": "stub", "flash": "kept"}
    assert workers() == []
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)
    await board.clear_faults()
    await held(board).flash(job_of([blob(tmp, 5000)]), Told())


@pytest.mark.long
async def test_a_flash_that_takes_too_long_as_a_whole_is_ended(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board, limits=FlashLimits(whole_s=0.2))
    with pytest.raises(FlashTimedOut):
        await device.flash(job_of([blob(tmp, 5000)]), Told())
    assert workers() == []


async def test_a_board_that_is_pulled_out_in_the_middle_is_gone(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.UNPLUG_AFTER, 60_000)
    device = held(board)
    with pytest.raises(BoardGone) as caught:
        await device.flash(job_of([blob(tmp, 200_000)]), Told())
    assert caught.value.facts["flash"] == "unknown"
    await board.replug()
    await board.until(lambda now: now.plugged)
    await device.flash(job_of([blob(tmp, 5000)]), Told())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:setName:DeprecationWarning")
async def test_a_board_behind_an_rfc2217_server_is_flashed(board: VirtualBoard, tmp: Path) -> None:
    image, path = blob(tmp, 30_000)
    async with rfc2217_server(board.url, tmp) as url:
        await board.until(lambda now: now.holder is not None)
        await held(url).flash(job_of([(image, path)], baud=115_200), Told())
    assert await board.read_flash(image.offset, image.size_bytes) == path.read_bytes()


@pytest.mark.long
async def test_a_terminal_that_vanishes_in_the_middle_is_a_board_that_is_gone(tmp: Path) -> None:
    async with virtual_board(chip="esp32", unplug_after_bytes=60_000, has_pty=True) as board:
        assert board.pty is not None
        with pytest.raises(BoardGone) as caught:
            await held(board.pty).flash(job_of([blob(tmp, 200_000)], target="esp32"), Told())
        assert caught.value.facts["flash"] == "unknown"


async def test_a_canceled_flash_leaves_no_process_and_a_board_that_can_be_flashed(
    board: VirtualBoard, tmp: Path
) -> None:
    device, told = held(board), Told()
    flashing = asyncio.create_task(device.flash(job_of([blob(tmp, 4_000_000)]), told))
    await until(lambda: "write" in told.phases(), within_s=10)
    flashing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flashing
    assert told.lines[-1][1] < 4_000_000
    assert workers() == []
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)
    await device.flash(job_of([blob(tmp, 3000)]), Told())


@pytest.mark.long
async def test_a_worker_that_does_not_end_when_asked_is_killed_with_the_board_brought_back(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.NO_STUB_GREETING)
    device = held(board, limits=FlashLimits(kill_after_s=0.2))
    told = Told()
    flashing = asyncio.create_task(device.flash(job_of([blob(tmp, 5000)]), told))
    await until(lambda: "connected" in told.phases(), within_s=10)
    (worker,) = workers()
    worker.suspend()  # it can hear nobody now
    flashing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flashing
    assert not worker.is_running()
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


async def test_a_worker_that_dies_is_a_flash_that_failed(board: VirtualBoard, tmp: Path) -> None:
    told = Told()
    flashing = asyncio.create_task(held(board).flash(job_of([blob(tmp, 4_000_000)]), told))
    await until(lambda: "write" in told.phases(), within_s=10)
    (worker,) = workers()
    worker.kill()
    with pytest.raises(FlashFailed) as caught:
        await flashing
    assert caught.value.facts["flash"] == "unknown"
    await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


DAEMON = """
import asyncio, json, sys
from aegis_agent.boards.worker import flash_worker

async def main():
    async with flash_worker(json.loads(sys.argv[1])) as worker:
        while True:
            print((await worker.next_event()).event, flush=True)

asyncio.run(main())
"""


@pytest.mark.long
async def test_a_worker_whose_daemon_was_killed_lets_the_port_go(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.NO_STUB_GREETING)
    wish: dict[str, object] = {
        "port": board.url,
        "target": "esp32p4",
        "mac": None,
        "baud": 115_200,
        "erase_all": False,
        "reset_first": True,
        "reset_after": True,
        "settings": FlashSettings().model_dump(),
        "images": [],
    }
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DAEMON, json.dumps(wish)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp)},
    )
    assert daemon.stdout is not None
    async with asyncio.timeout(10):
        while await daemon.stdout.readline() != b"connected\n":
            pass
    (worker,) = workers()
    daemon.kill()
    await daemon.wait()
    await board.until(lambda now: now.holder is None)
    await until(lambda: not worker.is_running())


async def test_erase_all_erases_what_no_image_covers(board: VirtualBoard, tmp: Path) -> None:
    device, told = held(board), Told()
    await device.flash(job_of([blob(tmp, 5000, offset=0x400000)]), told)
    assert told.phases() == ["connected", "write"]
    await device.flash(job_of([blob(tmp, 5000)], erase_all=True), told)
    assert told.phases() == ["connected", "write", "erase"]
    assert await board.read_flash(0x400000, 8192) == ERASED * 2
    assert await board.read_flash(0x10000, 4096) != ERASED


async def test_a_plain_pty_flashes_and_the_board_runs_afterwards(hello: Firmware) -> None:
    async with virtual_board(chip="esp32p4", has_pty=True) as board:
        assert board.pty is not None
        before = await board.status()
        await held(board.pty).flash(hello.job, Told())
        image = hello.job.images[-1][0]
        on_flash = await board.read_flash(image.offset, image.size_bytes)
        assert sha256(on_flash).hexdigest() == image.sha256
        await board.until(lambda now: now.state is BoardState.RUNNING and now.boots > before.boots)


@pytest.mark.long
async def test_a_port_that_its_board_takes_along_on_reset_is_waited_for(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.VANISH_ON_RESET, 0.4)
    before = await board.status()
    image, path = blob(tmp, 30_000)
    await held(board).flash(job_of([(image, path)]), Told())
    assert await board.read_flash(image.offset, image.size_bytes) == path.read_bytes()
    # Being started by the reset at the end, it takes its port along once more.
    await board.until(
        lambda now: now.plugged and now.boots > before.boots and now.state is BoardState.RUNNING
    )


@pytest.mark.long
async def test_a_port_that_does_not_come_back_from_a_reset_is_gone(
    board: VirtualBoard, tmp: Path
) -> None:
    await board.set_fault(FaultName.VANISH_ON_RESET, 60)
    device = held(board, limits=FlashLimits(return_s=0.5))
    with pytest.raises(BoardGone) as caught:
        await device.flash(job_of([blob(tmp, 5000)]), Told())
    assert caught.value.facts["flash"] == "kept"


@pytest.mark.long
async def test_a_board_that_does_not_answer_is_said_to_be_silent(tmp: Path) -> None:
    ours, theirs = os.openpty()  # nobody is at its other end
    try:
        with pytest.raises(BoardSilent) as caught:
            await held(os.ttyname(theirs)).flash(job_of([blob(tmp, 5000)]), Told())
    finally:
        os.close(ours)
        os.close(theirs)
    assert caught.value.facts["flash"] == "kept"


@pytest.mark.long
async def test_flash_settings_change_the_bootloader_and_its_region_is_told_as_it_is(
    board: VirtualBoard, hello: Firmware
) -> None:
    job = replace(hello.job, settings=FlashSettings(mode="dio", freq="20m", size="8MB"))
    result = await held(board).flash(job, Told())
    (boot, _), region = job.images[0], result.regions[0]
    on_flash = await board.read_flash(boot.offset, boot.size_bytes)
    assert region.sha256 == sha256(on_flash).hexdigest()
    assert region.sha256 != boot.sha256
    assert [r.sha256 for r in result.regions[1:]] == [i.sha256 for i, _ in job.images[1:]]


@pytest.mark.long
async def test_settings_that_esptool_does_not_know_erase_nothing(
    board: VirtualBoard, hello: Firmware
) -> None:
    device = held(board)
    await device.flash(hello.job, Told())
    for settings in (
        FlashSettings(mode="quick"),
        FlashSettings(freq="1g"),
        FlashSettings(size="3MB"),
    ):
        with pytest.raises(ImageInvalid):
            await device.flash(replace(hello.job, settings=settings, erase_all=True), Told())
    assert await board.read_flash(0x10000, 4096) != ERASED


@pytest.mark.long
async def test_an_image_beyond_the_flash_of_the_board_erases_nothing(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    await device.flash(job_of([blob(tmp, 5000)]), Told())
    with pytest.raises(ImageInvalid) as caught:
        beyond = blob(tmp, 8192, offset=0xFFF000)
        await device.flash(job_of([beyond], erase_all=True), Told())
    assert caught.value.facts["flash"] == "kept"
    assert await board.read_flash(0x10000, 4096) != ERASED


async def test_an_image_that_was_changed_after_its_manifest_is_not_written(
    board: VirtualBoard, tmp: Path
) -> None:
    before = await board.status()
    image, path = blob(tmp, 5000)
    path.write_bytes(bytes(5000))
    with pytest.raises(ImageInvalid):
        await held(board).flash(job_of([(image, path)]), Told())
    path.write_bytes(b"short")
    with pytest.raises(ImageInvalid):
        await held(board).flash(job_of([(image, path)]), Told())
    path.unlink()
    with pytest.raises(ImageInvalid):
        await held(board).flash(job_of([(image, path)]), Told())
    assert (await board.status()).received_bytes == before.received_bytes


def test_images_that_can_not_be_written_together_are_refused(tmp: Path) -> None:
    device = held(f"{tmp}/none")
    first, second = blob(tmp, 4097, offset=0x10000), blob(tmp, 100, offset=0x12000)
    device.check(job_of([second, first]))
    bad = {
        "none": [],
        "overlapping": [first, blob(tmp, 100, offset=0x11000)],
        "the same": [first, first],
        "not at a sector": [blob(tmp, 100, offset=0x10010)],
        "empty": [blob(tmp, 0, offset=0x10000)],
        "beyond": [blob(tmp, 5000, offset=0x10000000 - 4096)],
    }
    for name, images in bad.items():
        with pytest.raises(ImageInvalid):
            device.check(job_of(images))
            pytest.fail(f"accepted: {name}")


async def test_nothing_of_the_daemons_environment_or_folder_reaches_the_worker(
    board: VirtualBoard, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An own reset sequence that never comes to an end, in each place that esptool looks at.
    hostile = "[esptool]\ncustom_reset_sequence = W600\ncustom_hard_reset_sequence = W600\n"
    (tmp / "esptool.cfg").write_text(hostile)
    (tmp / "setup.cfg").write_text(hostile)
    (tmp / ".config" / "esptool").mkdir(parents=True)
    (tmp / ".config" / "esptool" / "esptool.cfg").write_text(hostile)
    monkeypatch.chdir(tmp)
    for name, value in {
        "HOME": str(tmp),
        "ESPTOOL_CFGFILE": str(tmp / "esptool.cfg"),
        "AGENT_AUTH_SECRET": "not-for-you",
        "PYTHONPATH": str(tmp),
        "PYTHONSTARTUP": str(tmp / "none.py"),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp / "esptool").mkdir()
    (tmp / "esptool" / "__init__.py").write_text("raise RuntimeError('a stranger')")
    told = Told()
    flashing = asyncio.create_task(held(board).flash(job_of([blob(tmp, 1_000_000)]), told))
    await until(lambda: "write" in told.phases(), within_s=10)
    (worker,) = workers()
    environment = worker.environ()
    assert set(environment) <= {
        *("PATH", "LANG", "HOME", "ESPTOOL_CFGFILE"),
        *("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "LC_CTYPE"),
    }
    assert "not-for-you" not in " ".join((*environment.values(), *worker.cmdline()))
    assert Path(worker.cwd()) != tmp
    await flashing


async def test_a_board_takes_one_flash_at_a_time_and_none_when_it_was_given_back(
    board: VirtualBoard, tmp: Path
) -> None:
    device = held(board)
    told = Told()
    job = job_of([blob(tmp, 100_000)])
    first = asyncio.create_task(device.flash(job, told))
    await until(lambda: told.lines, within_s=10)
    for attempt in (device.flash(job, Told()), device.reset()):
        with pytest.raises(BoardBusy):
            await attempt
    with pytest.raises(BoardBusy):
        await device.open_console(baud=115_200, spool_dir=tmp / "spool")
    await device.close()
    assert first.cancelled()
    assert workers() == []
    for attempt in (device.flash(job, Told()), device.reset()):
        with pytest.raises(BoardNotGranted):
            await attempt
