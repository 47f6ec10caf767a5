"""
A virtual board really executes RISC-V images, acts Xtensa ones, and refuses what chips refuse.

Marked `requires` are the tests that compile; the others need no compiler.
"""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable

import pytest
from aegis_agent.virtual_board import atomics, csr
from aegis_agent.virtual_board.boot import boot
from aegis_agent.virtual_board.boot_text import ResetCause
from aegis_protocol.failures.virtual_board import BadBoardSetting
from execution_boards import (
    ERASED,
    FACTORY,
    MAC,
    TARGETS,
    booted,
    compile_image,
    flash_with,
    make_image,
    partition_table,
    reseal,
    seal,
)

compiled = pytest.mark.requires("riscv64-unknown-elf-gcc", "xtensa-lx106-elf-gcc")
every_chip = pytest.mark.parametrize("chip", sorted(TARGETS))

Images = Callable[[str], bytes]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The application image of each chip, compiled when it is first asked for."""
    folder = tmp_path_factory.mktemp("execution")
    made: dict[str, bytes] = {}

    def image(chip: str) -> bytes:
        if chip not in made:
            made[chip] = compile_image(chip, folder)
        return made[chip]

    return image


# --- executing -------------------------------------------------------------------------------


@compiled
@every_chip
def test_an_image_runs_after_the_roms_banner_and_hears_a_line(chip: str, images: Images) -> None:
    with booted(chip, flash_with(chip, images(chip))) as board:
        board.console.wait_for(f"execution {chip} ready 600dda7a0\r\n")
        board.type("ehello, board\n")
        board.console.wait_for("heard hello, board\r\n")
    said = board.console.text
    assert said.startswith(f"ESP-ROM:{chip}-")
    assert "rst:0x1 (POWERON),boot:0x" in said
    assert " (SPI_FAST_FLASH_BOOT)\r\n" in said
    assert said.index("entry 0x") < said.index("Loaded app from partition at offset 0x10000")
    assert said.index("Loaded app") < said.index(f"execution {chip}")


@compiled
def test_a_counter_is_paced_by_wall_time(images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        started_s = time.monotonic()
        board.type("c")
        board.console.wait_for("count 0\r\ncount 1\r\ncount 2\r\ncount 3\r\ncount 4\r\n")
        took_s = time.monotonic() - started_s
    assert took_s >= 0.08, "four pauses of 20 ms"


@compiled
@pytest.mark.parametrize(("chip", "per_tick"), [("esp32p4", 22.5), ("esp32c3", 10)])
def test_cycles_and_ticks_agree(chip: str, per_tick: float, images: Images) -> None:
    """360 and 160 MHz over the system timer's 16 MHz, the host's own counter whatever it is."""
    with booted(chip, flash_with(chip, images(chip))) as board:
        board.console.wait_for("ready")
        board.type("k")
        found = board.console.wait_for(r"cycles per tick (\d+)\r\n")
    assert int(found[1]) == pytest.approx(per_tick, abs=1)


@compiled
def test_floats_and_unknown_csrs_work_on_the_p4(images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        board.type("fpm")
        board.console.wait_for("float 2500\r\n")
        board.console.wait_for(f"csr {0x50 | 3}\r\n")
        board.console.wait_for(f"mac {int.from_bytes(MAC[2:], 'big')}\r\n")


@compiled
@pytest.mark.parametrize("chip", ["esp32p4", "esp32c6"])
def test_no_atomic_is_lost_or_done_twice_when_interrupted(chip: str, images: Images) -> None:
    with booted(chip, flash_with(chip, images(chip)), cpu_budget=1.0) as board:
        board.console.wait_for("ready")
        board.type("aA")
        board.console.wait_for("atomic 42\r\n")
        board.console.wait_for("added 25000\r\nreserved 25000\r\n")


@compiled
def test_an_atomic_is_illegal_on_the_c3_which_has_none(images: Images) -> None:
    with booted("esp32c3", flash_with("esp32c3", images("esp32c3"))) as board:
        board.console.wait_for("ready")
        board.type("a")
        board.console.wait_for_restart()
    assert "panic'ed (Illegal instruction)" in board.console.text


@compiled
def test_a_byte_is_sent_once_however_often_the_core_is_stopped(images: Images) -> None:
    line = "babble babble babble babble"
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4")), cpu_budget=1.0) as board:
        board.console.wait_for("ready")
        board.type("b")
        board.console.wait_for(rf"({line}\r\n){{2000}}")
    lines = board.console.text.split("\r\n")
    babble = lines[lines.index(line) : -1]
    assert set(babble) == {line}


# --- traps -----------------------------------------------------------------------------------


@compiled
@every_chip
def test_each_trap_goes_to_the_firmwares_own_handler(chip: str, images: Images) -> None:
    with booted(chip, flash_with(chip, images(chip))) as board:
        board.console.wait_for("ready")
        board.type("t")
        board.console.wait_for("all traps returned\r\n")
    said = board.console.text
    for place, cause, value in (
        ("load", 5, "00000010"),
        ("store", 7, "00000024"),
        ("flash", 7, f"{TARGETS[chip].drom:08x}"),
        ("illegal", 2, "ffffffff"),
        ("ebreak", 3, "00000000"),
        ("ecall", 11, "00000000"),
    ):
        assert re.search(rf"{place} (\w{{8}})\r\ntrap {cause} {value} at \1\r\n", said), place
    assert "trap 1 33333330 at 33333330\r\n" in said
    assert "Guru" not in said


@compiled
def test_the_board_panics_for_firmware_that_has_no_handler(images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        board.type("n")
        board.console.wait_for_restart()
    said = board.console.text
    panic = said[said.index("aegis virtual board:") :].split("\r\n")
    assert panic[0].startswith("aegis virtual board: the firmware has no trap handler")
    assert panic[1] == (
        "Guru Meditation Error: Core  0 panic'ed (Load access fault). Exception was unhandled."
    )
    assert panic[3] == "Core  0 register dump:"
    assert re.fullmatch(r"(\S+ *: 0x[0-9a-f]{8}  ){4}", panic[4])
    assert panic[4].startswith("MEPC    : 0x4010")
    assert "MCAUSE  : 0x00000005  MTVAL   : 0x0000000c" in panic[12]
    stack = panic[panic.index("Stack memory:") + 1 :][:32]
    assert all(re.fullmatch(r"[0-9a-f]{8}:( 0x[0-9a-f]{8}){8}", line) for line in stack)
    assert re.fullmatch(r"ELF file SHA256: [0-9a-f]{64}", panic[-4])
    assert panic[-2:] == ["Rebooting...", ""]
    assert board.console.restarts == 1


@compiled
@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("u", "is not in executable memory"),
        ("x", "ends in the same fault again and again"),
        ("j", "the firmware has no trap handler"),
    ],
)
def test_a_handler_that_can_not_handle_ends_in_a_panic(
    typed: str, why: str, images: Images
) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        board.type(typed)
        board.console.wait_for_restart()
    assert why in board.console.text
    assert "Rebooting...\r\n" in board.console.text


@compiled
def test_a_call_into_the_rom_says_that_there_is_none(images: Images) -> None:
    with booted("esp32c3", flash_with("esp32c3", images("esp32c3"))) as board:
        board.console.wait_for("ready")
        board.type("j")
        board.console.wait_for("0x40000100 is in the chip's ROM, which is not emulated\r\n")
        board.console.wait_for("Instruction access fault")


# --- restart, stop, budget -------------------------------------------------------------------


@compiled
@every_chip
def test_a_software_reset_is_told_once_and_ends_the_run(chip: str, images: Images) -> None:
    with booted(chip, flash_with(chip, images(chip))) as board:
        board.console.wait_for("ready")
        board.type("r")
        board.console.wait_for_restart()
        assert board.console.text.endswith("restarting\r\n")
    assert board.console.restarts == 1


@compiled
def test_the_next_boot_says_why(images: Images) -> None:
    flash = flash_with("esp32p4", images("esp32p4"))
    with booted("esp32p4", flash, cause=ResetCause.SOFTWARE) as board:
        board.console.wait_for("ready")
    assert "rst:0x3 (SW_SYS_RESET),boot:0x" in board.console.text


@compiled
@pytest.mark.parametrize("typed", ["s", "b", "w", "e", "c"])
def test_stop_returns_whatever_the_firmware_does(typed: str, images: Images) -> None:
    with booted("esp32c6", flash_with("esp32c6", images("esp32c6"))) as board:
        board.console.wait_for("ready")
        board.type(typed)
        if typed != "e":
            board.console.wait_for(r"spinning|babble|waiting|count 0")
        board.running.stop()
        said = board.console.text
        board.running.stop()
        board.type("c")
    assert board.console.text == said
    assert board.console.restarts == 0


@compiled
def test_stop_may_be_called_from_the_restart_itself(images: Images) -> None:
    flash = flash_with("esp32c3", images("esp32c3"))
    ready, ended = threading.Event(), threading.Event()
    said = bytearray()

    def heard(data: bytes) -> None:
        said.extend(data)
        if b"ready" in said:
            ready.set()

    def restarted() -> None:
        running.stop()
        ended.set()

    running = boot(
        "esp32c3", lambda at, n: flash[at : at + n], uart_out=heard, mac=MAC, on_restart=restarted
    )
    assert ready.wait(10)
    running.feed(b"r")
    assert ended.wait(10)
    running.stop()


@compiled
def test_an_image_that_spins_keeps_to_its_budget(images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4")), cpu_budget=0.2) as board:
        board.console.wait_for("ready")
        board.type("s")
        board.console.wait_for("spinning")
        share = _cpu_share(1.5)
    # The credit of a quarter of a second, spread over the time that is measured, comes on top.
    assert 0.1 < share < 0.2 + 0.25 / 1.5 + 0.1


@compiled
@pytest.mark.parametrize("typed", ["", "w", "e"])
def test_an_image_that_waits_costs_next_to_nothing(typed: str, images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        board.type(typed)
        share = _cpu_share(0.6)
    assert share < 0.08


def _cpu_share(for_s: float) -> float:
    """Return which share of a core this process takes in the next `for_s` seconds."""
    started_s, worked_s = time.monotonic(), time.process_time()
    threading.Event().wait(for_s)
    return (time.process_time() - worked_s) / (time.monotonic() - started_s)


@compiled
def test_what_overruns_the_uart_is_lost_and_the_rest_is_read(images: Images) -> None:
    with booted("esp32p4", flash_with("esp32p4", images("esp32p4"))) as board:
        board.console.wait_for("ready")
        board.type("c" + "k" * 3)
        for _ in range(100):
            board.running.feed(bytes(4096))
        board.console.wait_for("count 4")
        board.console.wait_for(r"(?s)(cycles per tick.*){3}")


# --- acted -----------------------------------------------------------------------------------


@compiled
def test_an_esp32_image_is_acted_and_the_board_says_so(images: Images) -> None:
    image = images("esp32")
    with booted("esp32", flash_with("esp32", image)) as board:
        board.console.wait_for("is not executed.*\r\n")
        board.type("anyone?\n")
    said = board.console.text.split("\r\n")
    assert said[:3] == [
        "ets Jul 29 2019 12:21:46",
        "",
        "rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)",
    ]
    assert "load:0x3ff80000,len:64" in said
    elf_sha256 = image[32 + 144 : 32 + 176].hex()
    assert set(elf_sha256) != {"0"}
    assert said[-2:] == [
        "aegis virtual board: Xtensa code is not executed; "
        f"image acted 4.5.6, ELF SHA-256 {elf_sha256}",
        "",
    ]


def test_a_descriptor_can_not_write_escapes_to_a_terminal() -> None:
    described = struct.pack("<IIII32s32s", 0xABCD5432, 0, 0, 0, b"\x1b[2J", b"a\r\nb").ljust(256)
    app = make_image("esp32", 0x3FFB0000, [(0x3FFB0000, described)])
    with booted("esp32", flash_with("esp32", app)) as board:
        board.console.wait_for("image a\\?\\?b \\?\\[2J, ELF")


# --- what a chip refuses ---------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["esp32", "esp32p4"])
def test_an_erased_flash_gives_the_roms_complaint_again_and_again(chip: str) -> None:
    started_s = time.monotonic()
    with booted(chip, ERASED * 0x100000) as board:
        board.console.wait_for("(invalid header: 0xffffffff\r\n){3}")
        assert time.monotonic() - started_s > 0.5, "at a low rate"
    assert board.console.text.count("rst:") == 1


P4_RAM = 0x4FF40000


def _app(*segments: tuple[int, bytes], chip: str = "esp32p4") -> bytes:
    return make_image(chip, P4_RAM, list(segments) or [(P4_RAM, bytes(64))])


@pytest.mark.parametrize(
    ("flash", "complaint"),
    [
        (
            flash_with("esp32p4", None),
            "image at 0x10000 has invalid magic byte (nothing flashed here?)",
        ),
        (
            flash_with("esp32p4", _app(), table=ERASED * 64),
            "flash_parts: partition 0 invalid magic number 0xffff",
        ),
        (
            flash_with("esp32p4", _app(), table=partition_table(FACTORY)[:-1000] + ERASED * 1000),
            "Loaded app",
        ),
        (
            flash_with("esp32p4", _app(), table=partition_table((1, 2, 0x9000, 0x6000))),
            "boot: No bootable app partitions in the partition table",
        ),
        (
            flash_with("esp32p4", _app(chip="esp32c6")),
            "mismatch chip ID, expected 18, found 13",
        ),
        (
            flash_with("esp32p4", seal(_app()[:-33] + b"\x00")),
            "Checksum failed. Calculated 0xef read 0x0",
        ),
        (
            flash_with("esp32p4", _app()[:-1] + b"\x00"),
            "Image hash failed - image is corrupt",
        ),
        (
            flash_with("esp32p4", _app((0x20000000, bytes(64)))),
            "Segment 0 0x20000000-0x20000040 invalid: bad load address range",
        ),
        (
            flash_with("esp32p4", _app((0x4FFBFFE0, bytes(64)))),
            "Segment 0 0x4ffbffe0-0x4ffc0020 invalid: bad load address range",
        ),
        (
            flash_with("esp32p4", _app((0x40000000, bytes(64)))),
            "Segment 0 load address 0x40000000, doesn't match data 0x00010020",
        ),
        (
            flash_with("esp32p4", _app((P4_RAM, bytes(64)), (P4_RAM + 32, bytes(64)))),
            "invalid: overlaps another segment",
        ),
        (
            flash_with("esp32p4", _app()[:28] + struct.pack("<I", 0xFFFFFFFC) + bytes(64)),
            "invalid segment length 0xfffffffc",
        ),
        (
            flash_with("esp32p4", _app()[:28] + struct.pack("<I", 0x800000) + bytes(64)),
            "doesn't fit in partition length 1572864",
        ),
        (
            flash_with("esp32p4", b"\xe9\xff" + _app()[2:]),
            "segment count 255 exceeds max 16",
        ),
        (
            flash_with("esp32p4", _app(), table=partition_table((0, 0, 0x3FFFFC, 0xF0000000))),
            "bootloader_flash_read failed at 0x003ffffc",
        ),
        (
            flash_with("esp32p4", _app(), bootloader=_app()[:24] + ERASED * 64),
            "Invalid image block, can't boot.",
        ),
        (
            flash_with("esp32p4", _app(), bootloader=_app()[:-33] + b"\x00" * 33),
            "csum err:0xef!=0x0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_flash_gives_the_chips_own_complaint(flash: bytes, complaint: str) -> None:
    with booted("esp32p4", flash) as board:
        board.console.wait_for(re.escape(complaint))


def test_a_table_with_a_wrong_md5_is_refused() -> None:
    table = bytearray(partition_table(FACTORY))
    table[5] ^= 1
    with booted("esp32p4", flash_with("esp32p4", _app(), table=bytes(table))) as board:
        board.console.wait_for("load partition table error!")


def _selects(sequence: int) -> bytes:
    """Return one copy of otadata."""
    raw = struct.pack("<I", sequence)
    return raw + ERASED * 24 + struct.pack("<I", zlib.crc32(raw, 0xFFFFFFFF))


OTA = partition_table(
    (1, 0x00, 0xD000, 0x2000), (0, 0x10, 0x10000, 0x10000), (0, 0x11, 0x20000, 0x10000)
)


@pytest.mark.parametrize(
    ("otadata", "offset"),
    [
        ({}, 0x10000),
        ({0xD000: _selects(1)}, 0x10000),
        ({0xD000: _selects(1), 0xE000: _selects(2)}, 0x20000),
        ({0xD000: _selects(3), 0xE000: _selects(2)}, 0x10000),
        ({0xD000: _selects(2)[:-1] + b"\x00"}, 0x10000),
    ],
)
def test_otadata_chooses_the_slot(otadata: dict[int, bytes], offset: int) -> None:
    flash = flash_with("esp32p4", _app(), table=OTA, more={0x20000: _app(), **otadata})
    with booted("esp32p4", flash) as board:
        board.console.wait_for(f"Loaded app from partition at offset 0x{offset:x}\r\n")


def test_a_broken_slot_falls_back_to_the_other() -> None:
    flash = flash_with("esp32p4", None, table=OTA, more={0x20000: _app()})
    with booted("esp32p4", flash) as board:
        board.console.wait_for("OTA app partition slot 0 is not bootable")
        board.console.wait_for("Loaded app from partition at offset 0x20000")


# --- hostile, and broken around it -----------------------------------------------------------


def test_no_image_however_odd_keeps_a_board_from_stopping() -> None:
    """Random code, random data and random headers; the seed is fixed, so that a failure stays."""
    dice = random.Random(20_260)  # noqa: S311 - nothing secret
    for _ in range(45):
        code = dice.randbytes(4 * dice.randrange(1, 200))
        flavour = dice.randrange(3)
        if flavour == 1:  # mostly valid opcodes: loads, stores, jumps, CSRs, atomics
            opcodes = (0x03, 0x13, 0x23, 0x2F, 0x33, 0x63, 0x67, 0x6F, 0x73)
            words = (
                dice.getrandbits(32) & ~0x7F | dice.choice(opcodes) for _ in range(len(code) // 4)
            )
            code = b"".join(struct.pack("<I", word) for word in words)
        app = bytearray(_app((P4_RAM, code), (0x50108000, dice.randbytes(64))))
        if flavour == 2:
            app[dice.randrange(len(app))] = dice.randrange(256)
            app = bytearray(reseal(bytes(app))) if dice.random() < 0.5 else app
        with booted("esp32p4", flash_with("esp32p4", bytes(app))) as board:
            board.console.wait_for(r"Loaded app|E \(\d+\) |Invalid image|invalid header")
            board.type("x")
            threading.Event().wait(0.03)  # let it run; whatever it does is right
        assert "halted" not in board.console.text, board.console.text_tail()


def test_a_uart_that_fails_ends_the_board_and_nothing_hangs() -> None:
    def broken(data: bytes) -> None:
        raise OSError("the port is gone")

    running = boot(
        "esp32p4",
        lambda at, n: ERASED * n,
        uart_out=broken,
        mac=MAC,
        on_restart=lambda: None,
    )
    running.feed(b"x")
    running.stop()
    assert "board-cpu" not in {thread.name for thread in threading.enumerate()}


def test_a_flash_that_fails_is_said_on_the_uart() -> None:
    said = bytearray()
    came = threading.Event()

    def heard(data: bytes) -> None:
        said.extend(data)
        came.set()

    def broken(offset: int, size: int) -> bytes:
        raise OSError("the file is gone")

    running = boot("esp32p4", broken, uart_out=heard, mac=MAC, on_restart=lambda: None)
    assert came.wait(10)
    running.stop()
    assert b"aegis virtual board: halted, OSError: the file is gone\r\n" in said


def test_a_chip_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(BadBoardSetting, match="esp8266"):
        boot("esp8266", lambda at, n: b"", uart_out=print, mac=MAC, on_restart=lambda: None)


def test_without_unicorn_a_risc_v_board_says_which_extra_brings_it() -> None:
    code = """
import sys
sys.modules["unicorn"] = None
from aegis_agent.virtual_board.boot import boot, require_emulator
from aegis_protocol.failures.virtual_board import EmulatorMissing
require_emulator("esp32")
try:
    boot("esp32p4", lambda at, n: b"", uart_out=print, mac=bytes(6), on_restart=print)
except EmulatorMissing as exc:
    print(exc.code, exc.remedy)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "aegis-esp[virtual]" in done.stdout
    assert done.stderr == ""


# --- instructions that the board executes itself ---------------------------------------------


@pytest.mark.parametrize(
    ("funct5", "old", "operand", "new"),
    [
        (0b00000, 0xFFFFFFFF, 2, 1),
        (0b00001, 5, 7, 7),
        (0b00100, 0b1100, 0b1010, 0b0110),
        (0b01000, 0b1100, 0b1010, 0b1110),
        (0b01100, 0b1100, 0b1010, 0b1000),
        (0b10000, 0xFFFFFFFF, 1, 0xFFFFFFFF),
        (0b10100, 0xFFFFFFFF, 1, 1),
        (0b11000, 0xFFFFFFFF, 1, 1),
        (0b11100, 0xFFFFFFFF, 1, 0xFFFFFFFF),
    ],
)
def test_each_atomic_operation(funct5: int, old: int, operand: int, new: int) -> None:
    access = atomics.decode(funct5 << 27 | 11 << 20 | 10 << 15 | 2 << 12 | 12 << 7 | 0x2F)
    assert access is not None
    memory = {0x1000: old}
    result = atomics.Atomics().perform(
        access, 0x1000, operand, memory.__getitem__, memory.__setitem__
    )
    assert (result, memory[0x1000]) == (old, new)


def test_a_store_conditional_fails_after_another_store_and_without_a_reservation() -> None:
    reserve = atomics.decode(0b00010 << 27 | 10 << 15 | 2 << 12 | 5 << 7 | 0x2F)
    store = atomics.decode(0b00011 << 27 | 11 << 20 | 10 << 15 | 2 << 12 | 6 << 7 | 0x2F)
    assert reserve is not None
    assert store is not None
    core, memory = atomics.Atomics(), {0x1000: 1}
    read, write = memory.__getitem__, memory.__setitem__
    assert core.perform(store, 0x1000, 9, read, write) == 1
    core.perform(reserve, 0x1000, 0, read, write)
    memory[0x1000] = 2
    assert core.perform(store, 0x1000, 9, read, write) == 1
    core.perform(reserve, 0x1000, 0, read, write)
    assert core.perform(store, 0x1000, 9, read, write) == 0
    assert memory == {0x1000: 9}


def test_a_cycle_counter_can_be_set_and_counts_on() -> None:
    now_ns = 0
    csrs = csr.Csrs(lambda: now_ns, 1_000_000_000, lambda: None)
    write = csr.decode(0xB0051073)  # csrw mcycle, a0
    read = csr.decode(0xB0002573)  # csrr a0, mcycle
    assert write is not None
    assert read is not None
    now_ns = 5_000_000_000
    assert csrs.perform(read, 0) == 5_000_000_000 & 0xFFFFFFFF
    csrs.perform(write, 100)
    now_ns += 7
    assert csrs.perform(read, 0) == 107


def test_what_no_chip_would_allow_still_traps() -> None:
    for word, known in (
        (0x7C5010F3, True),  # csrrw with a register of the chip's own
        (0xC0001073, False),  # a write to a read-only counter
        (0xC01022F3, False),  # time, which no ESP chip has
        (0x00302573, False),  # fcsr while the float unit is off
    ):
        access = csr.decode(word)
        assert access is not None
        assert csr.is_known(access) is known, hex(word)
