# SPDX-License-Identifier: GPL-2.0-or-later
"""
The loader: what listens on UART0 in download mode, first the chip's ROM, then the stub.

    request   0 u8, op u8, length u16, checksum u32, data
    answer    1 u8, op u8, length u16, value u32, data, status (ROM 4 bytes, stub 2)

The ROM takes the host's rate from its first SYNC; both change it by CHANGE_BAUDRATE. What a
host loads into RAM is not executed: from MEM_END on the board plays the stub itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from aegis_agent.virtual_board import slip
from aegis_agent.virtual_board.chips import Chip
from aegis_agent.virtual_board.control_words import FaultName
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.flash import NorFlash
from aegis_agent.virtual_board.flash_commands import FlashCommands
from aegis_agent.virtual_board.loader_words import Answer, Op, Refusal, Refused, checked_block
from aegis_agent.virtual_board.registers import Registers

ROM_BAUD: Final = 115_200
ROM_SYNC_VALUE: Final = 0x20120707
SYNC_PAYLOAD: Final = b"\x07\x07\x12\x20" + b"\x55" * 32
SYNC_ANSWERS: Final = 8
MAX_RAM_BYTES: Final = 1024 * 1024
_REQUEST: Final = struct.Struct("<BBHI")

Command = Callable[[bytes, int], Answer]


class Machine(Protocol):
    """What a loader can do to the board that it runs on."""

    def run_flash(self) -> None:
        """Leave download mode and boot what is flashed."""

    def restart(self) -> None:
        """Reset the CPU; the straps stay as they were latched."""

    def watchdog_reset(self) -> None:
        """Reset the chip; the straps are read again."""


class Loader:
    """
    One stay in download mode.

    send   takes the bytes that the board transmits
    baud   the rate at which it listens; None: it has not measured the host's yet
    """

    def __init__(
        self,
        chip: Chip,
        registers: Registers,
        flash: NorFlash,
        faults: Faults,
        machine: Machine,
        send: Callable[[bytes], None],
    ) -> None:
        self._chip = chip
        self._registers = registers
        self._faults = faults
        self._machine = machine
        self._send = send
        self._packets = slip.Decoder()
        self._segments: list[range] = []
        self._ram_expected = 0
        self.is_stub = False
        self.is_silent = False
        self.baud: int | None = None
        self._flash = FlashCommands(flash, faults)
        self._rom_commands = self._commands_of_rom()
        self._stub_commands = self._commands_of_stub()

    def receive(self, data: bytes, host_baud: int) -> None:
        """Take bytes from the host, which sends at `host_baud`, and answer."""
        for packet in self._packets.feed(data):
            if not self.is_silent:
                self._take(packet, host_baud)

    def _take(self, packet: bytes, host_baud: int) -> None:
        if self._flash.is_reading_out:
            if len(packet) == 4:
                self._say(*self._flash.acknowledge(packet))
                return
            self._flash.stop_reading_out()
        if len(packet) < _REQUEST.size:
            return
        direction, op, length, checksum = _REQUEST.unpack_from(packet)
        payload = packet[_REQUEST.size :]
        if direction != 0:
            return
        if op == Op.SYNC:
            self._sync(payload, host_baud)
            return
        try:
            answer = self._obey(op, length, payload, checksum)
        except (Refused, struct.error) as exc:
            refusal = exc.why if isinstance(exc, Refused) else Refusal.BAD_LENGTH
            self._answer(op, Answer(), refusal)
            return
        self._answer(op, answer, None)
        self._say(*answer.frames)
        if answer.then is not None:
            answer.then()

    def _obey(self, op: int, length: int, payload: bytes, checksum: int) -> Answer:
        if length != len(payload):
            raise Refused(Refusal.BAD_LENGTH)
        command = (self._stub_commands if self.is_stub else self._rom_commands).get(op)
        if command is None:
            raise Refused(Refusal.UNKNOWN_COMMAND)
        return command(payload, checksum)

    def _sync(self, payload: bytes, host_baud: int) -> None:
        if payload != SYNC_PAYLOAD:
            return
        if self.baud is None:
            self.baud = host_baud
        for _ in range(SYNC_ANSWERS):
            self._answer(Op.SYNC, Answer(value=0 if self.is_stub else ROM_SYNC_VALUE), None)

    def _answer(self, op: int, answer: Answer, refusal: Refusal | None) -> None:
        if refusal is None:
            status = b"\0\0"
        else:
            status = bytes((1, refusal.of_stub if self.is_stub else refusal.of_rom))
        if not self.is_stub:
            status += b"\0\0"
        body = answer.data + status
        self._say(_REQUEST.pack(1, op, len(body), answer.value) + body)

    def _say(self, *packets: bytes) -> None:
        for packet in packets:
            self._send(slip.encode(packet))

    # --- commands ---

    def _commands_of_rom(self) -> Mapping[int, Command]:
        commands: dict[int, Command] = {
            Op.READ_REG: self._read_reg,
            Op.WRITE_REG: self._write_reg,
            Op.MEM_BEGIN: self._mem_begin,
            Op.MEM_DATA: self._mem_data,
            Op.MEM_END: self._mem_end,
            Op.CHANGE_BAUDRATE: self._change_baud,
            Op.SPI_SET_PARAMS: self._accept,
            Op.SPI_ATTACH: self._accept,
            Op.FLASH_BEGIN: self._flash.begin_in_rom,
            Op.FLASH_DATA: self._flash.data,
            Op.FLASH_END: self._leave_rom,
            Op.FLASH_DEFL_BEGIN: self._flash.begin_deflated_in_rom,
            Op.FLASH_DEFL_DATA: self._flash.deflated_data,
            Op.FLASH_DEFL_END: self._leave_rom,
            Op.SPI_FLASH_MD5: self._flash.md5_in_rom,
            Op.READ_FLASH_SLOW: self._flash.read_slow,
        }
        if self._chip.has_security_info:
            commands[Op.GET_SECURITY_INFO] = self._security_info
        return commands

    def _commands_of_stub(self) -> Mapping[int, Command]:
        commands = dict(self._rom_commands)
        del commands[Op.READ_FLASH_SLOW]
        return commands | {
            Op.FLASH_BEGIN: self._flash.begin_in_stub,
            Op.FLASH_END: self._leave_stub,
            Op.FLASH_DEFL_BEGIN: self._flash.begin_deflated_in_stub,
            Op.FLASH_DEFL_END: self._leave_stub,
            Op.SPI_FLASH_MD5: self._flash.md5_in_stub,
            Op.ERASE_FLASH: self._flash.erase_chip,
            Op.ERASE_REGION: self._flash.erase_region,
            Op.READ_FLASH: self._flash.read_out,
            Op.RUN_USER_CODE: self._run_user_code,
        }

    def _accept(self, _payload: bytes, _checksum: int) -> Answer:
        return Answer()

    def _read_reg(self, payload: bytes, _checksum: int) -> Answer:
        (address,) = struct.unpack("<I", payload)
        return Answer(value=self._registers.read(address, self.baud or ROM_BAUD))

    def _write_reg(self, payload: bytes, _checksum: int) -> Answer:
        is_reset = False
        for address, value, mask, _delay_us in struct.iter_unpack("<IIII", payload):
            is_reset |= self._registers.write(address, value, mask)
        return Answer(then=self._machine.watchdog_reset if is_reset else None)

    def _mem_begin(self, payload: bytes, _checksum: int) -> Answer:
        size, _blocks, _block_size, address = struct.unpack("<IIII", payload)
        if size > MAX_RAM_BYTES:
            raise Refused(Refusal.FAILED)
        self._segments.append(range(address, address + size))
        self._ram_expected = size
        return Answer()

    def _mem_data(self, payload: bytes, checksum: int) -> Answer:
        block = checked_block(payload, checksum)
        if len(block) > self._ram_expected:
            raise Refused(Refusal.TOO_MUCH_DATA)
        self._ram_expected -= len(block)
        return Answer()

    def _mem_end(self, payload: bytes, _checksum: int) -> Answer:
        stays, entry = struct.unpack("<II", payload)
        if stays:
            return Answer()
        if self._ram_expected or not any(entry in segment for segment in self._segments):
            raise Refused(Refusal.FAILED)
        return Answer(then=self._start_stub)

    def _start_stub(self) -> None:
        self._segments.clear()
        if self._faults.amount(FaultName.NO_STUB_GREETING) is not None:
            self.is_silent = True
            return
        self.is_stub = True
        self._say(b"OHAI")

    def _change_baud(self, payload: bytes, _checksum: int) -> Answer:
        baud, _old = struct.unpack("<II", payload)
        if not 300 <= baud <= 5_000_000:
            raise Refused(Refusal.FAILED)

        def then() -> None:
            self.baud = baud  # after the answer, which still goes at the old rate

        return Answer(then=then)

    def _security_info(self, _payload: bytes, _checksum: int) -> Answer:
        flags, crypt_count, eco_version = 0, 0, 0
        head = struct.pack("<IB7s", flags, crypt_count, bytes(7))
        return Answer(data=head + struct.pack("<II", self._chip.image_id, eco_version))

    def _leave_rom(self, payload: bytes, _checksum: int) -> Answer:
        (stays_without_reboot,) = struct.unpack("<I", payload)
        machine = self._machine
        return Answer(then=machine.run_flash if stays_without_reboot else machine.restart)

    def _leave_stub(self, payload: bytes, _checksum: int) -> Answer:
        (stays,) = struct.unpack("<I", payload)
        self._flash.finish()
        return Answer(then=None if stays else self._machine.restart)

    def _run_user_code(self, _payload: bytes, _checksum: int) -> Answer:
        return Answer(then=self._machine.run_flash)
