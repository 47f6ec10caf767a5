"""The real esptool against a virtual board: what it detects, writes, verifies and resets."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from aegis_agent.virtual_board.control_words import BoardState, FaultName
from aegis_agent.virtual_board.spawn import virtual_board
from esptool_runs import run_esptool

CHIPS = ["esp32", "esp32p4", "esp32c3", "esp32c6"]
QUICK_CHIPS = [
    "esp32",
    "esp32p4",
    pytest.param("esp32c3", marks=pytest.mark.long),
    pytest.param("esp32c6", marks=pytest.mark.long),
]
SIZES = {"esp32": "4MB"}
TITLES = {"esp32": "ESP32", "esp32p4": "ESP32-P4", "esp32c3": "ESP32-C3", "esp32c6": "ESP32-C6"}


@pytest.fixture
def image(tmp: Path) -> Path:
    """Not aligned, compressible here and there, and larger than an erase block."""
    chance = random.Random(7)  # noqa: S311
    path = tmp / "image.bin"
    path.write_bytes(chance.randbytes(30_000) + b"\0" * 40_000 + chance.randbytes(2_003))
    return path


@pytest.fixture(scope="session")
def modem_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "modem_shim.so"
    source = Path(__file__).with_name("modem_shim.c")
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"],
        check=True,
        timeout=60,
    )
    return library


@pytest.mark.parametrize("chip", CHIPS)
async def test_esptool_detects_a_board_with_its_mac_and_flash(chip: str, tmp: Path) -> None:
    async with virtual_board(chip=chip, mac="60:55:f9:12:34:56") as board:
        run = await run_esptool(board.url, "flash-id", folder=tmp)
        assert run.code == 0, run.output
        assert f"Chip type:          {TITLES[chip]}" in run.output
        assert "60:55:f9:12:34:56" in run.output
        assert f"Detected flash size: {SIZES.get(chip, '16MB')}" in run.output
        assert "Crystal frequency:  40MHz" in run.output
        assert "WARNING" not in run.output
        await board.until(lambda status: status.state is BoardState.RUNNING)


@pytest.mark.parametrize("chip", CHIPS)
async def test_the_stub_writes_at_a_higher_rate_and_the_flash_holds_it(
    chip: str, tmp: Path, image: Path
) -> None:
    async with virtual_board(chip=chip) as board:
        run = await run_esptool(
            board.url, "--baud", "921600", "write-flash", "0x10000", str(image), folder=tmp
        )
        assert run.code == 0, run.output
        assert "Stub flasher running." in run.output
        assert "Changing baud rate to 921600" in run.output
        assert "Hash of data verified." in run.output
        written = image.read_bytes()
        assert await board.read_flash(0x10000, len(written)) == written
        assert await board.read_flash(0x10000 - 4096, 4096) == b"\xff" * 4096
        status = await board.until(lambda status: status.state is BoardState.RUNNING)
        assert status.holder is None


@pytest.mark.parametrize("chip", QUICK_CHIPS)
async def test_the_rom_alone_writes_plain_and_compressed(chip: str, tmp: Path, image: Path) -> None:
    async with virtual_board(chip=chip) as board:
        written = image.read_bytes()
        for offset, how in ((0x10000, "--no-compress"), (0x80000, "--compress")):
            run = await run_esptool(
                board.url, "--no-stub", "write-flash", how, hex(offset), str(image), folder=tmp
            )
            assert run.code == 0, run.output
            assert "Stub flasher running." not in run.output
            assert "Hash of data verified." in run.output
            assert await board.read_flash(offset, len(written)) == written


async def test_a_flash_is_verified_read_back_and_erased(tmp: Path, image: Path) -> None:
    async with virtual_board(chip="esp32c6") as board:
        back = tmp / "back.bin"
        for arguments in (
            ("write-flash", "--no-compress", "0x20000", str(image)),
            ("verify-flash", "0x20000", str(image)),
            ("read-flash", "0x20000", "72003", str(back)),
            ("--no-stub", "read-flash", "0x20000", "1000", str(tmp / "slow.bin")),
            ("erase-region", "0x21000", "0x1000"),
        ):
            run = await run_esptool(board.url, *arguments, folder=tmp)
            assert run.code == 0, run.output
        assert back.read_bytes() == image.read_bytes()
        assert (tmp / "slow.bin").read_bytes() == image.read_bytes()[:1000]
        assert await board.read_flash(0x21000, 0x1000) == b"\xff" * 0x1000
        assert await board.read_flash(0x20000, 0x1000) == image.read_bytes()[:0x1000]
        run = await run_esptool(board.url, "verify-flash", "0x20000", str(image), folder=tmp)
        assert run.code != 0
        assert "Verification failed" in run.output
        run = await run_esptool(board.url, "erase-flash", folder=tmp)
        assert run.code == 0, run.output
        assert await board.read_flash(0x20000, 72_003) == b"\xff" * 72_003


async def test_a_stub_that_still_runs_is_found_and_used(tmp: Path) -> None:
    async with virtual_board(chip="esp32c3") as board:
        run = await run_esptool(board.url, "--after", "no-reset-stub", "read-mac", folder=tmp)
        assert run.code == 0, run.output
        assert (await board.status()).stub
        run = await run_esptool(
            board.url, "--before", "no-reset", "--after", "no-reset", "chip-id", folder=tmp
        )
        assert run.code == 0, run.output
        assert "Stub flasher is already running" in run.output
        status = await board.status()  # asked to stay, the stub gave the loader back to the ROM
        assert (status.state, status.stub) == (BoardState.LOADER, False)


@pytest.mark.parametrize("arguments", [("--no-stub", "run"), ("--after", "watchdog-reset", "run")])
async def test_esptool_lets_the_flash_run(arguments: tuple[str, ...], tmp: Path) -> None:
    async with virtual_board(chip="esp32p4") as board:
        before = await board.status()
        run = await run_esptool(board.url, *arguments, folder=tmp)
        assert run.code == 0, run.output
        await board.until(lambda now: now.state is BoardState.RUNNING and now.boots > before.boots)


async def test_a_digest_that_is_wrong_fails_the_write(tmp: Path, image: Path) -> None:
    async with virtual_board(chip="esp32p4", faults=["bad-md5"]) as board:
        arguments = ("write-flash", "0x10000", str(image))
        run = await run_esptool(board.url, *arguments, folder=tmp)
        assert run.code != 0
        assert "MD5 of file does not match data in flash" in run.output
        await board.clear_faults()
        run = await run_esptool(board.url, *arguments, folder=tmp)
        assert run.code == 0, run.output


async def test_a_stub_without_greeting_leaves_the_board_silent_until_its_reset(tmp: Path) -> None:
    async with virtual_board(chip="esp32", faults=["no-stub-greeting"]) as board:
        with pytest.raises(TimeoutError):  # esptool itself waits for ever
            await run_esptool(board.url, "flash-id", folder=tmp, deadline_s=2.5)
        status = await board.until(lambda now: now.holder is None)
        assert (status.state, status.stub) == (BoardState.LOADER, False)
        run = await run_esptool(board.url, "--no-stub", "flash-id", folder=tmp)
        assert run.code == 0, run.output


async def test_a_flash_that_fails_to_write_is_named(tmp: Path, image: Path) -> None:
    async with virtual_board(chip="esp32", faults=["write-error:20000"]) as board:
        run = await run_esptool(board.url, "write-flash", "0x10000", str(image), folder=tmp)
        assert run.code != 0
        assert "Failed to write compressed data to flash" in run.output


async def test_esptool_goes_on_when_a_board_that_was_pulled_out_is_back(
    tmp: Path, image: Path
) -> None:
    async with virtual_board(
        chip="esp32p4", unplug_after_bytes=25_000, faults=["replug-after:0.3"]
    ) as board:
        before = await board.status()
        run = await run_esptool(board.url, "--no-stub", "write-flash", "0", str(image), folder=tmp)
        assert "Lost connection, retrying" in run.output
        assert run.code == 0, run.output
        status = await board.status()
        assert status.generation == before.generation + 1
        assert FaultName.UNPLUG_AFTER not in status.faults
        assert await board.read_flash(0, 72_003) == image.read_bytes()


async def test_an_image_for_another_chip_is_refused_by_esptool(tmp: Path) -> None:
    wrong = tmp / "wrong.bin"
    wrong.write_bytes(bytes((0xE9, 1, 2, 0x40)) + bytes(8) + b"\x05\x00" + bytes(4098))
    async with virtual_board(chip="esp32p4") as board:
        run = await run_esptool(board.url, "write-flash", "0x2000", str(wrong), folder=tmp)
        assert run.code != 0
        assert await board.read_flash(0x2000, 4096) == b"\xff" * 4096


@pytest.mark.requires("gcc")
@pytest.mark.parametrize("chip", QUICK_CHIPS)
async def test_a_pty_with_modem_lines_is_reset_the_ordinary_way(
    chip: str, tmp: Path, image: Path, modem_shim: Path
) -> None:
    async with virtual_board(chip=chip, has_pty_lines=True) as board:
        assert board.pty is not None
        lines = {
            "LD_PRELOAD": str(modem_shim),
            "AEGIS_MODEM_TTY": board.pty,
            "AEGIS_MODEM_SOCKET": str(board.lines_socket),
        }
        run = await run_esptool(
            board.pty,
            *("--baud", "921600", "write-flash", "0x10000", str(image)),
            folder=tmp,
            extra_env=lines,
        )
        assert run.code == 0, run.output
        assert "WARNING" not in run.output
        assert "Connecting...." not in run.output, "a dot more is an attempt that failed"
        written = image.read_bytes()
        assert await board.read_flash(0x10000, len(written)) == written
        await board.until(lambda now: now.state is BoardState.RUNNING and now.holder is None)


@pytest.mark.parametrize("chip", QUICK_CHIPS)
async def test_a_plain_pty_is_in_the_loader_from_sync_to_close(
    chip: str, tmp: Path, image: Path
) -> None:
    async with virtual_board(chip=chip, has_pty=True) as board:
        assert board.pty is not None
        before = await board.status()
        run = await run_esptool(
            board.pty, "--baud", "460800", "write-flash", "0x10000", str(image), folder=tmp
        )
        assert run.code == 0, run.output
        written = image.read_bytes()
        assert await board.read_flash(0x10000, len(written)) == written
        await board.until(lambda now: now.state is BoardState.RUNNING and now.boots > before.boots)


async def test_a_port_that_vanishes_on_reset_comes_back_in_the_loader(tmp: Path) -> None:
    async with virtual_board(chip="esp32c3") as board:
        before = await board.status()
        await board.set_fault(FaultName.VANISH_ON_RESET, 0.3)
        run = await run_esptool(board.url, "chip-id", folder=tmp)
        assert run.code != 0, "esptool does not cope with it"
        status = await board.until(lambda now: now.plugged)
        assert status.generation > before.generation
        assert status.state is BoardState.LOADER
        run = await run_esptool(
            board.url, "--before", "no-reset", "--after", "no-reset", "chip-id", folder=tmp
        )
        assert run.code == 0, run.output


async def test_a_paced_board_takes_the_time_of_a_wire(tmp: Path) -> None:
    small = tmp / "small.bin"
    small.write_bytes(random.Random(1).randbytes(16_000))  # noqa: S311
    async with virtual_board(chip="esp32", is_paced=True) as board:
        run = await run_esptool(
            board.url, "--no-stub", "write-flash", "0x1000", str(small), folder=tmp
        )
        assert run.code == 0, run.output
        seconds = float(run.output.split(" in ")[-1].split(" seconds")[0])
        assert seconds >= 16_000 * 10 / 115_200
