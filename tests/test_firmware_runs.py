"""RISC-V fixtures really run: built, put into a virtual board's flash, executed, and heard."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import tty
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aegis_agent.virtual_board.spawn import virtual_board
from esp_idf_panic_decoder import PcAddressDecoder
from esp_idf_panic_decoder.gdb_panic_server import parse_idf_riscv_panic_output
from fixtures_platformio import Project, copy_fixture, platformio_home

pytestmark = pytest.mark.requires("riscv64-unknown-elf-gcc")

__all__ = ["platformio_home"]

FLASH_BYTES = {"esp32p4": 16 << 20, "esp32c3": 16 << 20, "esp32c6": 16 << 20}
BOOTLOADERS = {"esp32p4": 0x2000, "esp32c3": 0x0, "esp32c6": 0x0}
HEARD_WITHIN_S = 20.0


class Console:
    """What a board says on its pty, and a way to type."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.heard = ""

    async def until(self, pattern: str, *, within_s: float = HEARD_WITHIN_S) -> re.Match[str]:
        """Return the first match of `pattern` in what was heard since the console was opened."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._fd, readable.set)
        try:
            async with asyncio.timeout(within_s):
                while (match := re.search(pattern, self.heard)) is None:
                    await readable.wait()
                    readable.clear()
                    with contextlib.suppress(BlockingIOError):
                        self.heard += os.read(self._fd, 65_536).decode(errors="replace")
        except TimeoutError as exc:
            raise TimeoutError(f"{pattern!r} is not in {self.heard!r}") from exc
        finally:
            loop.remove_reader(self._fd)
        return match

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\r")


@asynccontextmanager
async def running(project: Project, chip: str, tmp: Path) -> AsyncIterator[Console]:
    """Build `project`, put its images into a board's flash, reset the board, listen."""
    run = await asyncio.to_thread(project.build, chip)
    assert run.code == 0, run.output
    flash = bytearray(b"\xff" * FLASH_BYTES[chip])
    images = {BOOTLOADERS[chip]: "bootloader", 0x8000: "partitions", 0x10000: "firmware"}
    for offset, name in images.items():
        data = (project.out(chip) / f"{name}.bin").read_bytes()
        flash[offset : offset + len(data)] = data
    flash_file = tmp / "flash.bin"
    flash_file.write_bytes(flash)
    async with virtual_board(chip=chip, flash_file=flash_file, has_pty=True) as board:
        assert board.pty is not None
        fd = os.open(board.pty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(fd)
            await board.until(lambda status: status.holder is not None)
            await board.reset()
            yield Console(fd)
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    "chip", ["esp32p4", "esp32c3", pytest.param("esp32c6", marks=pytest.mark.long)]
)
async def test_hello_says_its_own_digest_counts_and_answers(
    chip: str, platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("hello", platformio_home, tmp)
    async with running(project, chip, tmp) as console:
        await console.until(f"hello from {chip}\r\n")
        digest = (await console.until(r"ELF file SHA256: +([0-9a-f]{64})\r\n")).group(1)
        elf = (project.out(chip) / "firmware.elf").read_bytes()
        assert digest == hashlib.sha256(elf).hexdigest()
        assert re.search(r"Project name: +hello\r\n", console.heard)
        assert re.search(r"App version: +1\.0\.0\r\n", console.heard)
        assert re.search(rf"Chip: +{chip}\r\n", console.heard)
        console.type("good day")
        await console.until("you typed: good day\r\n")
        await console.until(r"count 2 at 1\.\d s\r\n")


async def test_multi_runs_its_library_and_its_constructor(platformio_home: Path, tmp: Path) -> None:
    project = copy_fixture("multi", platformio_home, tmp)
    async with running(project, "esp32c6", tmp) as console:
        await console.until(r"dots \d+, dashes \d+\r\n")
        console.type("SOS")
        await console.until(r"SOS: \.\.\. --- \.\.\.\r\n")
        await console.until(r"dots 23, dashes 13\r\n")


async def test_big_is_over_a_mebibyte_and_reads_back_every_word_of_it(
    platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("big", platformio_home, tmp)
    async with running(project, "esp32p4", tmp) as console:
        image = (project.out("esp32p4") / "firmware.bin").read_bytes()
        assert len(image) > 1 << 20
        assert len(zlib.compress(image, 1)) > 1 << 20, "or a flash would send much less of it"
        await console.until(
            "big on esp32p4: 1310720 bytes, checksum 8e6e9dc5, verified\r\n", within_s=60
        )


# The decoder's own parser calls pyparsing by its old names.
@pytest.mark.filterwarnings("ignore::pyparsing.warnings.PyparsingDeprecationWarning")
@pytest.mark.parametrize(
    ("chip", "typed", "reason"),
    [
        ("esp32p4", "load", "Load access fault"),
        ("esp32c3", "illegal", "Illegal instruction"),
        pytest.param("esp32c6", "jump", "Instruction access fault", marks=pytest.mark.long),
    ],
)
async def test_a_panic_has_the_real_format_and_decodes_to_named_functions(
    chip: str, typed: str, reason: str, platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("crash", platformio_home, tmp)
    async with running(project, chip, tmp) as console:
        await console.until("or stack\\?\r\n")
        console.type(typed)
        await console.until("Rebooting\\.\\.\\.\r\n")
        panic = console.heard
        # It has reset itself, and begins again.
        await console.until("(?s)Rebooting.*app_init: Project name: +crash\r\n")
    assert (
        f"Guru Meditation Error: Core  0 panic'ed ({reason}). Exception was unhandled.\r\n" in panic
    )
    elf = project.out(chip) / "firmware.elf"
    assert f"ELF file SHA256: {hashlib.sha256(elf.read_bytes()).hexdigest()}\r\n" in panic
    parsed = parse_idf_riscv_panic_output(panic)
    assert len(parsed.regs) == 37
    assert len(parsed.stack_data) == 1024
    decoder = PcAddressDecoder("riscv64-unknown-elf-", str(elf))
    named = [
        place.func
        for line in panic.partition("Stack memory")[2].splitlines()
        for _, places in decoder.translate_addresses(line)
        for place in places
    ]
    assert [name for name in named if name in CHAIN] == CHAIN


CHAIN = ["check_sensors", "run_self_test", "main", "startup"]


async def test_a_lost_stack_pointer_ends_in_a_reset_too(platformio_home: Path, tmp: Path) -> None:
    project = copy_fixture("crash", platformio_home, tmp)
    async with running(project, "esp32c3", tmp) as console:
        await console.until("or stack\\?\r\n")
        console.type("stack")
        await console.until("Panic handler entered multiple times")
        await console.until("(?s)multiple times.*app_init: Project name: +crash\r\n")
