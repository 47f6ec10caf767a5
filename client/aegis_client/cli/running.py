"""
One command from its start to its exit code: the loop, the signals, the errors.

The first Ctrl-C cancels what runs, here and on the agent, in five seconds at most; the second
leaves at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aegis_links import event_loop
from aegis_protocol.errors import AegisError

from aegis_client.cli.output import Output
from aegis_client.exit_codes import ExitCode, exit_code
from aegis_client.failures import Interrupted
from aegis_client.scratch import remove_all
from aegis_client.terminal import give_back

LEAVE_WITHIN_S: Final = 5.0
_CODES: Final = {
    "SIGINT": ExitCode.INTERRUPTED,
    "SIGTERM": ExitCode.TERMINATED,
    "SIGHUP": ExitCode.TERMINATED,
}


def run(out: Output, work: Callable[[], Coroutine[Any, Any, ExitCode | None]]) -> ExitCode:
    """Run `work` to its end; its AegisError is shown, and its code is the exit code."""
    signals = _Signals(out)
    try:
        return event_loop.run(_signalled(work, signals)) or ExitCode.OK
    except AegisError as exc:
        if signals.code is not None:
            return _interrupted(out, signals.code)
        out.error(exc)
        return exit_code(exc.code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _interrupted(out, signals.code or ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left: there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    finally:
        signals.disarm()


async def _signalled(
    work: Callable[[], Coroutine[Any, Any, ExitCode | None]], signals: _Signals
) -> ExitCode | None:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("asyncio.run runs a task")
    signals.arm(asyncio.get_running_loop(), task)
    return await work()


class _Signals:
    def __init__(self, out: Output) -> None:
        self.code: ExitCode | None = None
        self._out = out
        self._timer: threading.Timer | None = None

    def arm(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        for name, code in _CODES.items():
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, self._received, task, code)
            except (NotImplementedError, RuntimeError):
                # Windows, or not the main thread: Python's KeyboardInterrupt serves.
                return

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _received(self, task: asyncio.Task[Any], code: ExitCode) -> None:
        if self.code is not None:
            _leave(code)
        self.code = code
        self._out.note("canceling (once more to leave at once)")
        # A thread's timer: it must ring even where the loop is stuck.
        self._timer = threading.Timer(LEAVE_WITHIN_S, _leave, [code])
        self._timer.daemon = True
        self._timer.start()
        task.cancel()


def _interrupted(out: Output, code: ExitCode) -> ExitCode:
    if out.json:
        out.error(Interrupted("the command was interrupted"))
    return code


def _leave(code: ExitCode) -> None:
    give_back()
    remove_all()
    os._exit(code)
