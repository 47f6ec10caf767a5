"""What people see while something long goes on: bars on stderr, the log on stdout."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO, Final

from aegis_protocol.http_api.jobs import Reason
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aegis_client.cli.output import Output
from aegis_client.timestamps import Timestamps

BAR_PHASES: Final = frozenset({"upload", "download", "flash"})


class LiveReporter:
    """
    Bars for what has a length, lines for what happens, and the output's bytes as they are.

    log     where the build's terminal or the board's console goes; None: nowhere
            It is closed with the reporter
    stamps  puts the time before each line of the console
    """

    def __init__(self, out: Output, log: BinaryIO | None, stamps: Timestamps | None = None) -> None:
        self._out, self._log, self._stamps = out, log, stamps
        self._shown: _Bar | None = None
        self._finished: set[str] = set()
        self._reasons: tuple[Reason, ...] = ()
        self._shows_bars = out.talks and out.stderr.is_terminal

    def __enter__(self) -> LiveReporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        if self._log is not None:
            with suppress(OSError):
                self._log.close()

    def waiting(self, reasons: Sequence[Reason]) -> None:
        if tuple(reasons) == self._reasons:
            return
        self._reasons = tuple(reasons)
        self._out.note("waiting for an agent:" if reasons else "waiting for an agent")
        for reason in reasons:
            self._out.note(f"  {reason}")

    def connected(self, agent: str, path: str) -> None:
        self._out.note(f"connected to {agent} ({path})")

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        if not self._shows_bars:
            return
        if self._log is not None and phase.split()[0] not in BAR_PHASES:
            # The log itself shows how the build goes; a bar would be drawn into its lines.
            return
        if done == 0:
            self._finished.discard(phase)  # it begins anew, as for the next image
        if total and done >= total:
            self.clear()
            self._finished.add(phase)
        elif phase not in self._finished:
            self._bar(phase).update(done, total, detail)

    async def console(self, data: bytes) -> None:
        await self.output(data if self._stamps is None else self._stamps.feed(data))

    async def output(self, data: bytes) -> None:
        if self._log is None:
            return
        self.clear()
        try:
            # In a thread: a terminal that was stopped by Ctrl-S must not stop the peer link too.
            await asyncio.to_thread(_write, self._log, data)
        except OSError:
            # Whoever read the log has left; the work goes on.
            with suppress(OSError):
                self._log.close()
            self._log = None

    def gap(self, start: int, stop: int) -> None:
        self._out.note(f"[{stop - start} bytes of output are no longer kept]")

    def note(self, text: str) -> None:
        self._out.note(text)

    def clear(self) -> None:
        """Take the bar away, so that the log has the screen for itself."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def _bar(self, phase: str) -> _Bar:
        if self._shown is None or self._shown.phase != phase:
            self.clear()
            self._shown = _Bar(phase, self._out)
        return self._shown


class _Bar:
    """One phase; there is never more than one bar on the screen."""

    def __init__(self, phase: str, out: Output) -> None:
        self.phase = phase
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=out.stderr,
            transient=True,
        )
        self._task = self._progress.add_task(phase, total=None, detail="")
        self._progress.start()

    def update(self, done: int, total: int, detail: str) -> None:
        self._progress.update(self._task, completed=done, total=total or None, detail=detail[:60])

    def stop(self) -> None:
        self._progress.stop()


def log_stream(out: Output, wanted: bool | None) -> BinaryIO | None:
    """Where the log goes: stdout; with `--json` nowhere, or stderr if it is wanted all the same."""
    if wanted is False or (wanted is None and (out.json or out.quiet)):
        return None
    stream = sys.stderr if out.json else sys.stdout
    stream.flush()
    try:
        # Past the text layer: the bytes arrive as the agent's terminal made them.
        return os.fdopen(os.dup(stream.fileno()), "wb")
    except (OSError, ValueError):
        return None


def _write(log: BinaryIO, data: bytes) -> None:
    log.write(data)
    log.flush()
