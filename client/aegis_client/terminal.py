"""The user's terminal: its size, the news when it changes, and its mode given back at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aegis_protocol.rpc import Terminal

DEFAULT_COLS: Final = 80
DEFAULT_ROWS: Final = 24
_MAX: Final = 1000

_restore: list[Callable[[], None]] = []


def terminal() -> Terminal:
    """Return the terminal on stdout as a build should see it; 80 x 24 where there is none."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
        cols, rows = size.columns, size.lines
    except (OSError, ValueError):
        cols, rows = 0, 0
    return Terminal(
        cols=_clamped(cols, DEFAULT_COLS), rows=_clamped(rows, DEFAULT_ROWS), color=colored()
    )


def colored() -> bool:
    """Colours where a terminal shows them and nobody asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


async def sizes() -> AsyncIterator[tuple[int, int]]:
    """Columns and rows, each time the terminal was resized. Ends at once where that is no news."""
    winch = getattr(signal, "SIGWINCH", None)
    if winch is None or not sys.stdout.isatty():
        return
    loop, resized = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(winch, resized.set)
    try:
        while True:
            await resized.wait()
            resized.clear()
            now = terminal()
            yield now.cols, now.rows
    finally:
        loop.remove_signal_handler(winch)


@contextmanager
def keys_at_once() -> Iterator[None]:
    """
    While the block lasts, stdin gives each key as it is pressed and shows none of them. Ctrl-C
    stays a signal. Nothing happens where stdin is no terminal.
    """
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return

    def restore() -> None:
        termios.tcsetattr(fd, termios.TCSANOW, before)

    _restore.append(restore)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        restore()
        _restore.remove(restore)


def give_back() -> None:
    """Restore the terminal's mode at once, for a program that ends without unwinding."""
    for restore in reversed(_restore):
        restore()


def _clamped(value: int, default: int) -> int:
    return min(value, _MAX) if value > 0 else default
