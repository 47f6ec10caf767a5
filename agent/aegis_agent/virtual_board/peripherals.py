# SPDX-License-Identifier: GPL-2.0-or-later
"""
The registers that are more than memory: UART0, SYSTIMER, software reset.

A page that holds one of them is answered word by word by `LiveRegisters`; what lies beside them
in such a page keeps what is written and reads 0 until then, as all other peripherals do.
Everything here but `Uart0.feed` belongs to the thread of the CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from aegis_agent.virtual_board.silicon import PAGE_BYTES, Silicon

# Of a real FIFO's 128 bytes the status shows no more; what the host sends beyond this is lost.
RECEIVE_BUFFER_BYTES: Final = 4096
_RECEIVE_COUNT_MOST: Final = 127

_UART_FIFO: Final = 0x00
_UART_STATUS: Final = 0x1C

SYSTIMER_HZ: Final = 16_000_000
_VALUE_BITS: Final = 52
_VALID: Final = 1 << 29
_LATCH: Final = 1 << 30
# Per unit: the register that latches, then high and low half of the latched value.
_UNITS: Final = ((0x04, 0x40, 0x44), (0x08, 0x48, 0x4C))


class Device(Protocol):
    """Registers at word offsets from the device's base; None leaves a word to plain memory."""

    def read(self, offset: int) -> int | None: ...

    def write(self, offset: int, value: int) -> None: ...


class Uart0:
    """
    The UART that is wired to the board's port, at whatever rate the other side has.

    send      takes what was transmitted, a byte at a time
    on_empty  is told when the firmware looked for a byte and there was none
    """

    def __init__(self, send: Callable[[int], None], on_empty: Callable[[], None]) -> None:
        self._send = send
        self._on_empty = on_empty
        self._received: deque[int] = deque()

    def feed(self, data: bytes) -> None:
        """Take bytes from the host, from any thread; what overruns the buffer is lost."""
        room = RECEIVE_BUFFER_BYTES - len(self._received)
        self._received.extend(data[: max(room, 0)])

    @property
    def has_input(self) -> bool:
        return bool(self._received)

    def read(self, offset: int) -> int | None:
        if offset == _UART_FIFO:
            return self._received.popleft() if self._received else 0
        if offset == _UART_STATUS:
            waiting = min(len(self._received), _RECEIVE_COUNT_MOST)
            if not waiting:
                self._on_empty()
            return waiting  # the transmitter, from bit 16 on, always has room
        return None

    def write(self, offset: int, value: int) -> None:
        if offset == _UART_FIFO:
            self._send(value & 0xFF)


class Systimer:
    """
    Both units of the system timer: 16 MHz of wall time since the reset.

    elapsed_ns  nanoseconds since the reset
    on_latch    is told each time the firmware looks at the clock
    """

    def __init__(self, elapsed_ns: Callable[[], int], on_latch: Callable[[], None]) -> None:
        self._elapsed_ns = elapsed_ns
        self._on_latch = on_latch
        self._latched = [0, 0]

    def read(self, offset: int) -> int | None:
        for unit, (operate, high, low) in enumerate(_UNITS):
            if offset == operate:
                return _VALID
            if offset == high:
                return self._latched[unit] >> 32
            if offset == low:
                return self._latched[unit] & 0xFFFFFFFF
        return None

    def write(self, offset: int, value: int) -> None:
        for unit, (operate, _, _) in enumerate(_UNITS):
            if offset == operate and value & _LATCH:
                ticks = self._elapsed_ns() * SYSTIMER_HZ // 1_000_000_000
                self._latched[unit] = ticks % (1 << _VALUE_BITS)
                self._on_latch()


class ResetRegister:
    """The register with the bit that restarts the chip; `on_reset` may be told more than once."""

    def __init__(self, bit: int, on_reset: Callable[[], None]) -> None:
        self._bit = bit
        self._on_reset = on_reset

    def read(self, offset: int) -> int | None:
        return None

    def write(self, offset: int, value: int) -> None:
        if offset == 0 and value & self._bit:
            self._on_reset()


class LiveRegisters:
    """Words of the pages in which devices stand, and the devices."""

    def __init__(
        self, silicon: Silicon, uart: Device, systimer: Device, reset: Device, mac: bytes
    ) -> None:
        self._devices: dict[int, tuple[Device, int]] = {}
        self._place(silicon.uart0, 0x80, uart)
        self._place(silicon.systimer, 0x100, systimer)
        self._place(silicon.reset_register, 4, reset)
        self._words: dict[int, int] = {}
        self.pages = tuple(sorted({address & ~(PAGE_BYTES - 1) for address in self._devices}))
        # As the eFuse controller shows it: the last four bytes in one word, the first two next.
        self.preset = {
            silicon.efuse_mac: int.from_bytes(mac[2:6], "big"),
            silicon.efuse_mac + 4: int.from_bytes(mac[0:2], "big"),
        }
        self._words.update(self.preset)

    def read(self, address: int, size_bytes: int) -> int:
        """Return `size_bytes` (1, 2 or 4) at `address`."""
        word = address & ~3
        value: int | None = None
        device = self._devices.get(word)
        if device is not None:
            value = device[0].read(word - device[1])
        if value is None:
            value = self._words.get(word, 0)
        return value >> (address & 3) * 8 & (1 << size_bytes * 8) - 1

    def write(self, address: int, size_bytes: int, value: int) -> None:
        word = address & ~3
        shift = (address & 3) * 8
        mask = ((1 << size_bytes * 8) - 1) << shift & 0xFFFFFFFF
        merged = self._words.get(word, 0) & ~mask | value << shift & mask
        self._words[word] = merged
        device = self._devices.get(word)
        if device is not None:
            device[0].write(word - device[1], merged)

    def _place(self, base: int, size_bytes: int, device: Device) -> None:
        for address in range(base, base + size_bytes, 4):
            self._devices[address] = (device, base)
