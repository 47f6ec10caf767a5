"""The NOR flash of a virtual board, and what its loader makes of good and bad requests."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from aegis_agent.virtual_board import slip
from aegis_agent.virtual_board.board import MOVES
from aegis_agent.virtual_board.chips import CHIPS
from aegis_agent.virtual_board.control_words import BoardState, FaultName
from aegis_agent.virtual_board.faults import Faults, parse_fault
from aegis_agent.virtual_board.flash import NorFlash, OutOfFlash, open_flash
from aegis_agent.virtual_board.loader_words import Op, checksum
from aegis_agent.virtual_board.registers import Registers, sfdp_table
from aegis_agent.virtual_board.rom import SYNC_PAYLOAD, Loader
from aegis_protocol.failures.virtual_board import BadBoardSetting, FlashFileUnusable

MIB = 1024 * 1024


@pytest.fixture
def flash() -> NorFlash:
    return NorFlash(bytearray(b"\xff") * MIB)


def test_writing_clears_bits_and_never_sets_one(flash: NorFlash) -> None:
    flash.program(100, b"\x0f\xf0\xff")
    flash.program(100, b"\xff\x3c\x00")
    assert flash.read(99, 5) == b"\xff\x0f\x30\x00\xff"


def test_erasing_sets_a_whole_sector_or_block_and_no_more(flash: NorFlash) -> None:
    flash.program(0, b"\0" * 200_000)
    flash.erase_sector(4096)
    assert flash.read(4095, 4098) == b"\0" + b"\xff" * 4096 + b"\0"
    flash.erase_block(65_536)
    assert flash.read(65_535, 65_538) == b"\0" + b"\xff" * 65_536 + b"\0"
    with pytest.raises(OutOfFlash):
        flash.erase_sector(100)
    flash.erase_range(140_000, 1)
    assert flash.read(139_263, 4098) == b"\0" + b"\xff" * 4096 + b"\0"


def test_nothing_reaches_beyond_the_end(flash: NorFlash) -> None:
    for act in (
        lambda: flash.read(MIB - 1, 2),
        lambda: flash.program(MIB, b"x"),
        lambda: flash.erase_range(MIB - 4096, 4097),
        lambda: flash.read(-1, 1),
    ):
        with pytest.raises(OutOfFlash):
            act()


def test_a_flash_in_a_file_keeps_what_was_written(tmp: Path) -> None:
    path = tmp / "flash.bin"
    with open_flash(None, MIB, path) as flash:
        flash.program(5000, b"kept")
    with open_flash(None, 4 * MIB, path) as flash:
        assert flash.size_bytes == MIB
        assert flash.read(4999, 6) == b"\xffkept\xff"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_flash_file_is_for_one_board_of_one_size(tmp: Path) -> None:
    path = tmp / "flash.bin"
    with open_flash(MIB, MIB, path):
        with pytest.raises(FlashFileUnusable, match="Another board"), open_flash(None, MIB, path):
            pass
    with pytest.raises(FlashFileUnusable, match="1048576 bytes"), open_flash(2 * MIB, MIB, path):
        pass
    with pytest.raises(FlashFileUnusable), open_flash(None, MIB, tmp / "no" / "such"):
        pass
    with pytest.raises(BadBoardSetting), open_flash(1000, MIB, None):
        pass


def test_slip_survives_every_byte_and_every_cut() -> None:
    payloads = [bytes(range(256)), b"\xc0\xdb\xdc\xdd" * 3, b"x"]
    stream = b"noise" + b"".join(slip.encode(payload) for payload in payloads)
    for step in (1, 2, 7, len(stream)):
        decoder = slip.Decoder()
        found = [
            packet
            for start in range(0, len(stream), step)
            for packet in decoder.feed(stream[start : start + step])
        ]
        assert found == payloads
    decoder = slip.Decoder()
    assert list(decoder.feed(b"\xc0bad\xdbescape\xc0" + slip.encode(b"good"))) == [b"good"]
    assert not list(decoder.feed(b"\xc0" + b"x" * 200_000 + b"\xc0"))


def test_the_flash_chip_describes_its_size() -> None:
    assert NorFlash(bytearray(4 * MIB)).jedec_id() == 0x1640C8
    table = sfdp_table(16 * MIB)
    assert table[:4] == b"SFDP"
    (pointer,) = struct.unpack_from("<I", table, 12)
    (density,) = struct.unpack_from("<I", table, (pointer & 0xFFFFFF) + 4)
    assert density == 16 * MIB * 8 - 1


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_each_chip_has_room_for_its_revision_and_no_other(chip: object) -> None:
    row = CHIPS[chip.name]  # type: ignore[attr-defined]
    assert row.efuses(bytes(range(6)), row.revision)
    for wrong in ("1", "9.9", "0.99", "x.1", ""):
        with pytest.raises(BadBoardSetting):
            row.efuses(bytes(6), wrong)


def test_every_state_of_a_board_can_be_reached_and_left() -> None:
    assert set(MOVES) == set(BoardState)
    reached = {BoardState.OFF}
    for _ in BoardState:
        reached |= {to for state in reached for to in MOVES[state]}
    assert reached == set(BoardState)
    assert all(MOVES.values())


def test_faults_are_read_from_words() -> None:
    assert parse_fault("bad-md5") == (FaultName.BAD_MD5, None)
    assert parse_fault("unplug-after:5000") == (FaultName.UNPLUG_AFTER, 5000.0)
    for wrong in ("", "smoke", "unplug-after:", "unplug-after:x", "unplug-after:-1", "bad-md5:nan"):
        with pytest.raises(BadBoardSetting):
            parse_fault(wrong)


class Machine:
    """Notes what a loader does to its board."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run_flash(self) -> None:
        self.done.append("run_flash")

    def restart(self) -> None:
        self.done.append("restart")

    def watchdog_reset(self) -> None:
        self.done.append("watchdog_reset")


class Host:
    """The host's end of the wire to a loader: sends requests, reads packets."""

    def __init__(self, chip: str, flash: NorFlash, *, status_bytes: int = 4) -> None:
        self.machine = Machine()
        self.faults = Faults()
        self.packets: list[bytes] = []
        self.status_bytes = status_bytes
        decoder = slip.Decoder()
        registers = Registers(CHIPS[chip], flash, bytes(6), CHIPS[chip].revision)
        self.loader = Loader(
            CHIPS[chip],
            registers,
            flash,
            self.faults,
            self.machine,
            lambda data: self.packets.extend(decoder.feed(data)),
        )

    def ask(self, op: int, data: bytes = b"", *, check: int = 0) -> tuple[int, bytes, bytes]:
        """Return value, data and the first two status bytes of the answer."""
        self.packets.clear()
        self.loader.receive(slip.encode(struct.pack("<BBHI", 0, op, len(data), check) + data), 9600)
        answer = self.packets[0]
        direction, op_back, length, value = struct.unpack_from("<BBHI", answer)
        assert (direction, op_back, length) == (1, op, len(answer) - 8)
        body = answer[8:]
        cut = len(body) - self.status_bytes
        return value, body[:cut], body[cut : cut + 2]

    def block(self, op: int, data: bytes, *, check: int | None = None) -> bytes:
        header = struct.pack("<IIII", len(data), 0, 0, 0)
        return self.ask(op, header + data, check=checksum(data) if check is None else check)[2]

    def start_stub(self) -> None:
        self.ask(Op.MEM_BEGIN, struct.pack("<IIII", 4, 1, 4, 0x4FF00000))
        assert self.block(Op.MEM_DATA, b"code") == b"\0\0"
        self.ask(Op.MEM_END, struct.pack("<II", 0, 0x4FF00000))
        assert self.packets[-1] == b"OHAI"
        self.status_bytes = 2


def test_the_rom_answers_sync_eight_times_and_the_stub_with_zero(flash: NorFlash) -> None:
    host = Host("esp32p4", flash)
    value, _, status = host.ask(Op.SYNC, SYNC_PAYLOAD)
    assert value != 0 and status == b"\0\0" and len(host.packets) == 8
    host.start_stub()
    value, _, _ = host.ask(Op.SYNC, SYNC_PAYLOAD)
    assert value == 0 and len(host.packets) == 8


def test_a_damaged_block_is_refused_and_not_written(flash: NorFlash) -> None:
    host = Host("esp32", flash)
    host.ask(Op.FLASH_BEGIN, struct.pack("<IIII", 1024, 1, 1024, 0))
    assert host.block(Op.FLASH_DATA, b"\0" * 1024, check=1) == b"\x01\x07"
    assert host.ask(Op.FLASH_DATA, b"short")[2] == b"\x01\x05"
    assert flash.read(0, 1024) == b"\xff" * 1024
    assert host.block(Op.FLASH_DATA, b"\0" * 1024) == b"\0\0"
    assert host.block(Op.FLASH_DATA, b"\0" * 1024)[0] == 1, "more than was begun"


def test_what_was_not_erased_shows_in_the_flash(flash: NorFlash) -> None:
    flash.program(0, b"\xf0" * 8192)
    host = Host("esp32", flash)
    host.ask(Op.FLASH_BEGIN, struct.pack("<IIII", 4096, 8, 1024, 0))
    for _ in range(8):
        assert host.block(Op.FLASH_DATA, b"\x3c" * 1024) == b"\0\0"
    assert flash.read(0, 4096) == b"\x3c" * 4096
    assert flash.read(4096, 4096) == b"\x30" * 4096


def test_the_rom_erases_at_the_beginning_and_the_stub_ahead_of_each_write(flash: NorFlash) -> None:
    flash.program(0, b"\0" * 16_384)
    host = Host("esp32", flash)
    begin = struct.pack("<IIII", 8192, 2, 4096, 0)
    host.ask(Op.FLASH_BEGIN, begin)
    assert flash.read(0, 16_384) == b"\xff" * 8192 + b"\0" * 8192
    flash.program(0, b"\0" * 8192)
    host.start_stub()
    host.ask(Op.FLASH_BEGIN, begin)
    assert flash.read(0, 8192) == b"\0" * 8192
    host.block(Op.FLASH_DATA, b"\x55" * 4096)
    assert flash.read(0, 8192) == b"\x55" * 4096 + b"\0" * 4096


def test_a_deflated_stream_that_is_broken_or_too_long_is_refused(flash: NorFlash) -> None:
    host = Host("esp32c3", flash)
    begin = struct.pack("<IIIII", 4096, 1, 1024, 0, 0)
    host.ask(Op.FLASH_DEFL_BEGIN, begin)
    assert host.block(Op.FLASH_DEFL_DATA, b"not deflated") == b"\x01\x0b"
    host.ask(Op.FLASH_DEFL_BEGIN, begin)
    assert host.block(Op.FLASH_DEFL_DATA, zlib.compress(b"\0" * 4097))[0] == 1
    host.ask(Op.FLASH_DEFL_BEGIN, begin)
    assert host.block(Op.FLASH_DEFL_DATA, zlib.compress(b"\x11" * 4096)) == b"\0\0"
    assert flash.read(0, 4096) == b"\x11" * 4096
    assert host.block(Op.FLASH_DEFL_DATA, zlib.compress(b"\0"))[0] == 1


def test_a_block_sent_again_after_a_failed_write_fails_too(flash: NorFlash) -> None:
    host = Host("esp32c3", flash)
    host.faults.set(FaultName.WRITE_ERROR, 100)
    host.ask(Op.FLASH_DEFL_BEGIN, struct.pack("<IIIII", 4096, 1, 1024, 0, 0))
    packed = zlib.compress(b"\0" * 4096)
    assert host.block(Op.FLASH_DEFL_DATA, packed) == b"\x01\x08"
    host.faults.clear()
    assert host.block(Op.FLASH_DEFL_DATA, packed) == b"\x01\x08"
    assert flash.read(0, 4096) == b"\xff" * 4096


def test_a_stub_that_did_not_arrive_whole_is_not_started(flash: NorFlash) -> None:
    host = Host("esp32c6", flash)
    host.ask(Op.MEM_BEGIN, struct.pack("<IIII", 8, 2, 4, 0x40800000))
    host.block(Op.MEM_DATA, b"half")
    assert host.ask(Op.MEM_END, struct.pack("<II", 0, 0x40800000))[2][0] == 1
    host.block(Op.MEM_DATA, b"more")
    assert host.ask(Op.MEM_END, struct.pack("<II", 0, 0x12345678))[2][0] == 1
    assert not host.loader.is_stub


def test_digests_are_hex_from_the_rom_and_raw_from_the_stub(flash: NorFlash) -> None:
    flash.program(256, b"digested")
    wanted = hashlib.md5(b"digested", usedforsecurity=False)
    ask = struct.pack("<IIII", 256, 8, 0, 0)
    host = Host("esp32p4", flash)
    assert host.ask(Op.SPI_FLASH_MD5, ask)[1] == wanted.hexdigest().encode()
    host.start_stub()
    assert host.ask(Op.SPI_FLASH_MD5, ask)[1] == wanted.digest()
    assert host.ask(Op.SPI_FLASH_MD5, struct.pack("<IIII", MIB, 1, 0, 0))[2][0] == 1


def test_only_the_esp32_does_not_know_its_security_info(flash: NorFlash) -> None:
    for name, chip in CHIPS.items():
        _, data, status = Host(name, flash).ask(Op.GET_SECURITY_INFO)
        if name == "esp32":
            assert status == b"\x01\x05"
        else:
            assert struct.unpack_from("<I", data, 12) == (chip.image_id,)


def test_commands_of_the_stub_are_unknown_to_the_rom(flash: NorFlash) -> None:
    host = Host("esp32c3", flash)
    assert host.ask(Op.ERASE_FLASH)[2] == b"\x01\x05"
    assert host.ask(0x77)[2] == b"\x01\x05"
    host.start_stub()
    flash.program(0, b"\0")
    assert host.ask(Op.ERASE_FLASH)[2] == b"\0\0"
    assert flash.read(0, 1) == b"\xff"
    assert host.ask(Op.READ_FLASH_SLOW, struct.pack("<II", 0, 4))[2] == b"\x01\xff"


@pytest.mark.parametrize(
    ("in_stub", "word", "done"),
    [(False, 1, ["run_flash"]), (False, 0, ["restart"]), (True, 0, ["restart"]), (True, 1, [])],
)
def test_the_end_of_a_write_does_what_its_word_says(
    in_stub: bool, word: int, done: list[str], flash: NorFlash
) -> None:
    host = Host("esp32p4", flash)
    if in_stub:
        host.start_stub()
    assert host.ask(Op.FLASH_END, struct.pack("<I", word))[2] == b"\0\0"
    assert host.machine.done == done


def test_noise_never_breaks_a_loader(flash: NorFlash, rubbish: Callable[[], bytes]) -> None:
    host = Host("esp32p4", flash)
    for _ in range(300):
        host.loader.receive(slip.encode(rubbish()), 115_200)
        host.loader.receive(rubbish(), 115_200)
    host.loader.receive(b"\xc0", 115_200)  # ends whatever the noise began
    value, _, _ = host.ask(Op.SYNC, SYNC_PAYLOAD)
    assert value != 0


@pytest.fixture
def rubbish() -> Callable[[], bytes]:
    chance = random.Random(3)  # noqa: S311

    def make() -> bytes:
        head = struct.pack("<BBH", 0, chance.choice(list(Op)), chance.choice((0, 4, 8, 16, 20)))
        return (head if chance.random() < 0.8 else b"") + chance.randbytes(
            chance.choice((4, 20, 24))
        )

    return make
