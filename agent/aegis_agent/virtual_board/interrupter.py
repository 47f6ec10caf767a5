# SPDX-License-Identifier: GPL-2.0-or-later
"""
A thread that ends the core's runs, so that the loop around it sees its budget and its stop.

Unicorn, when told to stop from outside, may end in the middle of an access to a register, after
the register acted, and repeats the instruction afterwards: a byte would be sent twice. So the
core is first asked, and ends by itself before the next register acts. Only where it has worked on
since without touching one, which shows in its thread's CPU time, it is forced.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Protocol, Self

_TICK_S: Final = 0.025
# Once it must end: the first force may come before a run has begun.
_STOPPING_TICK_S: Final = 0.002
# More CPU time than lies between a register's action and the end of its instruction.
_WORKED_ON_S: Final = 0.0005


class Interruptible(Protocol):
    def ask(self) -> int:
        """Ask the core to pause; return the number of the run that was asked."""

    def force(self, run: int | None) -> None:
        """Stop run number `run` where it was asked and still goes on; any run for None."""


class Interrupter:
    """To be made and entered in the thread that runs `core`."""

    def __init__(self, core: Interruptible, stopping: threading.Event) -> None:
        self._core = core
        self._stopping = stopping
        self._ended = threading.Event()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._thread = threading.Thread(target=self._run, name="board-tick", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._stopping.is_set():
                self._core.force(None)
                self._ended.wait(_STOPPING_TICK_S)
                continue
            run = self._core.ask()
            asked_s = time.clock_gettime(self._clock)
            self._stopping.wait(_TICK_S)
            if time.clock_gettime(self._clock) - asked_s > _WORKED_ON_S:
                self._core.force(run)
