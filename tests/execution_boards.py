"""
Flashes to boot from, and a booted board to talk to, for the tests of execution.

The images are compiled from execution_firmware/ by Debian's cross compilers and laid out by real
esptool; bootloaders and partition tables are built here, byte by byte.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_agent.virtual_board.boot import Running, boot
from aegis_agent.virtual_board.silicon import SILICON

SOURCES = Path(__file__).parent / "execution_firmware"
FLASH_BYTES = 4 * 1024 * 1024
MAC = bytes.fromhex("30eda1e2f304")
ERASED = b"\xff"


@dataclass(frozen=True)
class Target:
    march: str
    mabi: str
    drom: int
    irom: int
    ram: int
    rom_code: int
    defines: dict[str, str] = field(default_factory=dict)


_COMMON = ("-Os", "-nostdlib", "-nostartfiles", "-ffreestanding", "-static", "-Wl,--build-id=none")
TARGETS = {
    "esp32p4": Target("rv32imafc_zicsr", "ilp32f", 0x40000020, 0x40100020, 0x4FF40000, 0x4FC00100),
    "esp32c3": Target("rv32imc_zicsr", "ilp32", 0x3C000020, 0x42000020, 0x3FC80000, 0x40000100),
    "esp32c6": Target("rv32imac_zicsr", "ilp32", 0x42000020, 0x42100020, 0x40800000, 0x40000100),
}
_MTVEC_MODES = {"esp32p4": 3, "esp32c3": 1, "esp32c6": 1}  # CLIC, vectored


def compile_image(chip: str, folder: Path) -> bytes:
    """Return the application image of execution_firmware/ for `chip`."""
    elf = folder / f"{chip}.elf"
    if chip == "esp32":
        command = [
            "xtensa-lx106-elf-gcc",
            "-mlongcalls",
            *_COMMON,
            f"-T{SOURCES / 'acted.ld'}",
            str(SOURCES / "acted.c"),
        ]
    else:
        target, silicon = TARGETS[chip], SILICON[chip]
        defines = {
            "CHIP": f'"{chip}"',
            "UART0": silicon.uart0,
            "SYSTIMER": silicon.systimer,
            "MAC": silicon.efuse_mac,
            "RESET_REG": silicon.reset_register,
            "RESET_BIT": f"{silicon.reset_bit}u",
            "ROM_CODE": target.rom_code,
            "MTVEC_MODE": _MTVEC_MODES[chip],
        }
        places = {"DROM_AT": target.drom, "IROM_AT": target.irom, "RAM_AT": target.ram}
        command = [
            "riscv64-unknown-elf-gcc",
            f"-march={target.march}",
            f"-mabi={target.mabi}",
            *_COMMON,
            "-Wl,--no-warn-rwx-segments",
            *(f"-Wl,--defsym,{name}={address}" for name, address in places.items()),
            *(f"-D{name}={value}" for name, value in defines.items()),
            f"-T{SOURCES / 'link.ld'}",
            *map(str, (SOURCES / "start.S", SOURCES / "firmware.c")),
        ]
    subprocess.run([*command, "-o", str(elf)], check=True, timeout=60)
    image = elf.with_suffix(".bin")
    arguments = ["elf2image", "--elf-sha256-offset", "0xb0", "-o", str(image), str(elf)]
    subprocess.run(
        [sys.executable, "-m", "esptool", "--chip", chip, *arguments],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    return image.read_bytes()


def make_image(chip: str, entry: int, segments: list[tuple[int, bytes]]) -> bytes:
    """Return a valid image of `segments`, laid out as they come."""
    body = struct.pack("<BBBBI", 0xE9, len(segments), 2, 0x20, entry)
    body += b"\xee\0\0\0" + struct.pack("<H", SILICON[chip].image_chip_id) + bytes(9) + b"\x01"
    checksum = 0xEF
    for address, data in segments:
        body += struct.pack("<II", address, len(data)) + data
        for byte in data:
            checksum ^= byte
    return seal(body + bytes(15 - len(body) % 16) + bytes([checksum]))


def seal(body: bytes) -> bytes:
    """Return `body`, which ends with its checksum, and its SHA-256."""
    return body + hashlib.sha256(body).digest()


def reseal(image: bytes) -> bytes:
    """Return `image`, changed meanwhile, with checksum and SHA-256 made right again."""
    body = bytearray(image[:-32])
    checksum, at = 0xEF, 24
    for _ in range(body[1]):
        length = struct.unpack_from("<I", body, at + 4)[0]
        for byte in body[at + 8 : at + 8 + length]:
            checksum ^= byte
        at += 8 + length
    body[-1] = checksum
    return seal(bytes(body))


FACTORY = (0, 0x00, 0x10000, 0x180000)


def partition_table(*entries: tuple[int, int, int, int]) -> bytes:
    """Return a table of (type, subtype, offset, size), with its MD5."""
    raw = b"".join(
        struct.pack("<HBBII16sI", 0x50AA, kind, subtype, offset, size, b"name", 0)
        for kind, subtype, offset, size in entries
    )
    raw += b"\xeb\xeb" + ERASED * 14 + hashlib.md5(raw, usedforsecurity=False).digest()
    return raw.ljust(0xC00, ERASED)


def flash_with(
    chip: str,
    app: bytes | None,
    *,
    table: bytes | None = None,
    bootloader: bytes | None = None,
    more: dict[int, bytes] | None = None,
) -> bytes:
    """Return a whole flash: bootloader, partition table, `app` at 0x10000, and `more`."""
    cells = bytearray(ERASED * FLASH_BYTES)
    start = SILICON[chip].ram[0].start
    parts = {
        SILICON[chip].bootloader_offset: bootloader
        or make_image(chip, start, [(start, bytes(64))]),
        0x8000: table or partition_table(FACTORY),
        **({0x10000: app} if app else {}),
        **(more or {}),
    }
    for offset, data in parts.items():
        cells[offset : offset + len(data)] = data
    return bytes(cells)


class Console:
    """What came out of the UART, and waiting for it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._came = threading.Condition()
        self.restarts = 0

    def write(self, data: bytes) -> None:
        with self._came:
            self._bytes += data
            self._came.notify_all()

    def restart(self) -> None:
        with self._came:
            self.restarts += 1
            self._came.notify_all()

    @property
    def text(self) -> str:
        with self._came:
            return self._bytes.decode("latin-1")

    def wait_for(self, pattern: str, within_s: float = 10) -> re.Match[str]:
        """Return the first match of `pattern`; fail with all that was said when none comes."""
        deadline_s = time.monotonic() + within_s
        with self._came:
            while not (found := re.search(pattern, self._bytes.decode("latin-1"))):
                left_s = deadline_s - time.monotonic()
                assert self._came.wait(max(left_s, 0)), f"no {pattern!r} in:\n{self.text_tail()}"
        return found

    def wait_for_restart(self, within_s: float = 10) -> None:
        with self._came:
            came = self._came.wait_for(lambda: self.restarts > 0, within_s)
        assert came, f"no restart after:\n{self.text_tail()}"

    def text_tail(self) -> str:
        return self._bytes[-3000:].decode("latin-1")


@dataclass
class Board:
    console: Console
    running: Running

    def type(self, text: str) -> None:
        self.running.feed(text.encode())


@contextmanager
def booted(chip: str, flash: bytes, **settings: Any) -> Iterator[Board]:
    """Boot `flash`; at the end the board must stop in time and say nothing any more."""
    console = Console()
    running = boot(
        chip,
        lambda offset, size: flash[offset : offset + size],
        uart_out=console.write,
        mac=MAC,
        on_restart=console.restart,
        **settings,
    )
    try:
        yield Board(console, running)
    finally:
        started_s = time.monotonic()
        running.stop()
        took_s = time.monotonic() - started_s
        assert took_s < 1.5, f"stop() took {took_s:.2f} s"
    assert "board-cpu" not in {thread.name for thread in threading.enumerate()}
