"""
Boards for the agent's tests: virtual ones, in the hands of the agent's own code.

    hello        the fixture `hello`, built for an esp32p4 once a session
    held         a board's device as the registry would give it to a job
    running      a board that has `hello` on its flash
    blob         an image that no compression makes smaller
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aegis_agent.boards import BoardDevice, Console, FlashJob, ports
from aegis_agent.boards.flashing import FlashLimits
from aegis_agent.virtual_board.spawn import VirtualBoard, virtual_board
from aegis_links.spool import Piece, Spool
from aegis_protocol.manifest import FlashImage, FlashSettings
from fixtures_platformio import copy_fixture

CHIP = "esp32p4"
FLASH_BYTES = 16 << 20
OFFSETS = {"bootloader": 0x2000, "partitions": 0x8000, "app": 0x10000}
HEARD_WITHIN_S = 15.0
_RFC2217_SERVER = """
import sys
from aegis_agent import serial_urls
serial_urls.register()
sys.argv = ["esp_rfc2217_server", "-p", sys.argv[2], sys.argv[1]]
import esp_rfc2217_server
esp_rfc2217_server.main()
"""


@dataclass(frozen=True)
class Firmware:
    """A built fixture: what to flash, and the digest that it prints when it runs."""

    job: FlashJob
    elf_sha256: str


@dataclass
class Told:
    """What a flash said of its progress: (phase, done, total, detail), each with its time."""

    lines: list[tuple[str, int, int, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        self.lines.append((phase, done, total, detail))
        self.times.append(asyncio.get_running_loop().time())

    def phases(self) -> list[str]:
        return list(dict.fromkeys(line[0] for line in self.lines))


@pytest.fixture(scope="session")
def hello(platformio_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firmware]:
    project = copy_fixture("hello", platformio_home, tmp_path_factory.mktemp("hello"))
    run = project.build(CHIP)
    assert run.code == 0, run.output
    out = project.out(CHIP)
    files = {"bootloader": "bootloader.bin", "partitions": "partitions.bin", "app": "firmware.bin"}
    elf_sha256 = hashlib.sha256((out / "firmware.elf").read_bytes()).hexdigest()
    images = [described(name, OFFSETS[name], out / file) for name, file in files.items()]
    yield Firmware(job_of(images, elf_sha256=elf_sha256), elf_sha256)


def described(name: str, offset: int, path: Path) -> tuple[FlashImage, Path]:
    data = path.read_bytes()
    image = FlashImage(
        name=name,
        path=path.name,
        offset=offset,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return image, path


def blob(folder: Path, size_bytes: int, *, offset: int = 0x10000) -> tuple[FlashImage, Path]:
    path = folder / f"blob-{offset:x}.bin"
    path.write_bytes(random.Random(offset).randbytes(size_bytes))  # noqa: S311
    return described(path.stem, offset, path)


def job_of(
    images: Sequence[tuple[FlashImage, Path]],
    *,
    target: str = CHIP,
    settings: FlashSettings | None = None,
    baud: int = 921_600,
    erase_all: bool = False,
    elf_sha256: str | None = None,
) -> FlashJob:
    return FlashJob(
        images=tuple(images),
        target=target,
        settings=settings or FlashSettings(),
        baud=baud,
        erase_all=erase_all,
        elf_sha256=elf_sha256,
    )


def held(
    port: VirtualBoard | str,
    *,
    chip: str | None = None,
    mac: str | None = None,
    limits: FlashLimits | None = None,
    console_return_s: float = 5.0,
    spool_bytes: int = 1 << 20,
    learned: Callable[[str, str, str], None] = lambda board_id, mac, chip: None,
) -> BoardDevice:
    path = port.url if isinstance(port, VirtualBoard) else port
    return BoardDevice(
        "bench-1",
        lambda: path if ports.is_present(path) else None,
        chip=chip,
        mac=mac,
        on_identity=learned,
        spool_bytes=spool_bytes,
        limits=limits,
        console_return_s=console_return_s,
    )


def said(spool: Spool) -> str:
    """Everything that the spool still holds."""
    text, offset = b"", spool.start_offset
    while isinstance(piece := spool.read(offset), Piece):
        text += piece.data
        offset += len(piece.data)
    return text.decode(errors="replace")


async def until_said(
    console: Console, pattern: str, *, within_s: float = HEARD_WITHIN_S
) -> re.Match[str]:
    """Return the first match of `pattern` in what the console has spooled."""
    grown = asyncio.Event()
    try:
        async with asyncio.timeout(within_s):
            with console.spool.watched_by(grown):
                while (match := re.search(pattern, said(console.spool))) is None:
                    await grown.wait()
                    grown.clear()
    except TimeoutError as exc:
        raise TimeoutError(f"{pattern!r} is not in {said(console.spool)!r}") from exc
    return match


@asynccontextmanager
async def running(firmware: Firmware, folder: Path, **settings: Any) -> AsyncIterator[VirtualBoard]:
    """A board whose flash holds `firmware` already."""
    flash = bytearray(b"\xff" * FLASH_BYTES)
    for image, path in firmware.job.images:
        flash[image.offset : image.offset + image.size_bytes] = path.read_bytes()
    (folder / "flash.bin").write_bytes(flash)
    async with virtual_board(chip=CHIP, flash_file=folder / "flash.bin", **settings) as board:
        yield board


@asynccontextmanager
async def rfc2217_server(url: str, folder: Path) -> AsyncIterator[str]:
    """esptool's own server in front of the port `url`; yields the URL that it serves."""
    # It resets the board by itself, with the ioctl that a virtual board's socket does not have.
    settings = folder / "esptool.cfg"
    settings.write_text("[esptool]\ncustom_reset_sequence = D0|R1|W0.1|D1|R0|W0.05|D0\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RFC2217_SERVER, url, str(port)),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, "ESPTOOL_CFGFILE": str(settings)},
    )
    try:
        yield f"rfc2217://127.0.0.1:{port}?ign_set_control"
    finally:
        server.kill()
        await server.wait()
