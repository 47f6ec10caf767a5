"""
The pseudo-terminal of a build: its size, what is typed, what comes out.

The build leads its own session on the slave side; this side reads until the last process that
has it open is gone (Linux says EIO then).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

_READ_BYTES: Final = 65_536
_TYPED_BYTES: Final = 65_536
"""What may wait to be read by the build; more typing is dropped, as a terminal does."""


class BuildTerminal:
    """
    Open it as a context, start the build on `slave_fd`, then `close_slave`.

    on_output  called with what the build prints, as it comes
    """

    def __init__(self, cols: int, rows: int, *, on_output: Callable[[bytes], None]) -> None:
        self._master, self.slave_fd = os.openpty()
        self._on_output = on_output
        self._waiting = bytearray()
        self._ended = asyncio.Event()
        os.set_blocking(self._master, False)
        self.resize(cols, rows)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._master)
        loop.remove_writer(self._master)
        self.close_slave()
        master, self._master = self._master, -1
        os.close(master)

    def close_slave(self) -> None:
        """Forget the slave side, so that the build alone has it."""
        if self.slave_fd >= 0:
            os.close(self.slave_fd)
            self.slave_fd = -1

    def resize(self, cols: int, rows: int) -> None:
        """Set the size; what runs in the foreground gets SIGWINCH when that is a change."""
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        """Send keystrokes."""
        if self._master < 0 or len(self._waiting) + len(data) > _TYPED_BYTES:
            return
        self._waiting += data
        self._write()

    async def drained(self, *, deadline_s: float) -> None:
        """Wait until all output has come, at most `deadline_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._ended.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        if data:
            self._on_output(data)
            return
        asyncio.get_running_loop().remove_reader(self._master)
        self._ended.set()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            written = os.write(self._master, self._waiting)
            del self._waiting[:written]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()
        if self._waiting:
            loop.add_writer(self._master, self._write)
        else:
            loop.remove_writer(self._master)
