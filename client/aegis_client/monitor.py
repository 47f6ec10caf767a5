"""A board's console: shown, kept, watched for what must come and what must not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import MonitorFailed, MonitorLimit
from aegis_protocol.frames import StreamGap, StreamOutput
from aegis_protocol.rpc import MonitorOpenParams, MonitorOpenResult, TaskInfo, TaskParams

from aegis_client.build import failure
from aegis_client.expect import ConsoleWatch, Match
from aegis_client.failures import OutputUnwritable
from aegis_client.reporter import Reporter
from aegis_client.resumed_view import ResumedView
from aegis_client.session import Session

CLOSE_S: Final = 3.0
ELF_GRACE_S: Final = 2.0
_LAST_CHARS: Final = 400

_log = structlog.get_logger("aegis_client.monitor")


@dataclass(frozen=True)
class MonitorOptions:
    """
    expect     end well when this pattern was seen
    fail       end badly when one of these was
    timeout_s  at the latest; None: no end
    log        a file for the bytes as they come
    elf        having seen `expect`, wait a little for the ELF's digest to be printed
    """

    baud: int = 115_200
    reset: bool = False
    expect: str | None = None
    fail: tuple[str, ...] = ()
    timeout_s: float | None = None
    log: Path | None = None
    elf: bool = False


@dataclass(frozen=True)
class MonitorReport:
    """What was seen. matched: of `expect`; elf_sha256: as printed, perhaps only its beginning."""

    board_id: str
    seen_bytes: int
    duration_s: float
    matched: str | None
    elf_sha256: str | None

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


async def watch_console(
    session: Session,
    board_id: str,
    options: MonitorOptions,
    reporter: Reporter,
    *,
    keys: AsyncIterator[bytes] | None = None,
    leave: asyncio.Event | None = None,
) -> MonitorReport:
    """
    Show a console until `expect` came, time was over, or `leave` was set.

    keys  what to type at the board

    Raises
    ------
    MonitorLimit    `expect` did not come in time
    MonitorFailed   a `fail` pattern came
    BoardGone, …    the console's end, as the agent tells it
    """
    watch = ConsoleWatch(options.expect, options.fail)
    params = MonitorOpenParams(
        board_id=board_id, baud=options.baud, reset=options.reset, write=keys is not None
    )
    run = _Run(session, watch, options, reporter)
    with _log_file(options.log) as log:
        opened = await session.call("monitor.open", params, MonitorOpenResult)
        if keys is not None and not opened.writer:
            refused = Action.CONSOLE_WRITE not in session.actions
            why = "this key may not type" if refused else "another peer types at this console"
            reporter.note(f"{why}: reading along")
            keys = None
        try:
            match = await run.until_over(opened, log, keys, leave or asyncio.Event())
        finally:
            await _closed(session, opened.task_id)
    if match is not None and not match.expected:
        raise MonitorFailed(
            f"the console showed {match.text[:200]!r}", pattern=match.pattern, board_id=board_id
        )
    return run.report(board_id, match)


class _Run:
    """One look at a console."""

    def __init__(
        self, session: Session, watch: ConsoleWatch, options: MonitorOptions, reporter: Reporter
    ) -> None:
        self._session, self._watch = session, watch
        self._options, self._reporter = options, reporter
        self._began = time.monotonic()
        self._seen_bytes = 0
        self._last = b""

    def report(self, board_id: str, match: Match | None) -> MonitorReport:
        return MonitorReport(
            board_id=board_id,
            seen_bytes=self._seen_bytes,
            duration_s=round(time.monotonic() - self._began, 3),
            matched=match.text if match else None,
            elf_sha256=self._watch.elf_sha256,
        )

    async def until_over(
        self,
        opened: MonitorOpenResult,
        log: BinaryIO | None,
        keys: AsyncIterator[bytes] | None,
        leave: asyncio.Event,
    ) -> Match | None:
        """Return what matched; None when time was over with nothing to wait for, or on `leave`."""
        reading = asyncio.create_task(self._read(opened, log, keys), name="console")
        leaving = asyncio.create_task(leave.wait(), name="leave")
        try:
            await asyncio.wait(
                [reading, leaving],
                timeout=self._options.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reading.done():
                return reading.result()
            if self._options.expect is None or leaving.done():
                return None
            raise MonitorLimit(
                f"{self._options.expect!r} did not come within {self._options.timeout_s:g} s",
                pattern=self._options.expect,
                seen_bytes=self._seen_bytes,
                last=self._last.decode("utf-8", "replace"),
            )
        finally:
            for task in (reading, leaving):
                task.cancel()
            await asyncio.gather(reading, leaving, return_exceptions=True)

    async def _read(
        self,
        opened: MonitorOpenResult,
        log: BinaryIO | None,
        keys: AsyncIterator[bytes] | None,
    ) -> Match | None:
        view = ResumedView(
            self._session, ChannelName.SERIAL, opened.stream, from_offset=opened.offset
        )
        typing = asyncio.create_task(_type(view, keys), name="keys")
        try:
            async with aclosing(aiter(view)) as events:
                match = await self._matched(events, log)
        finally:
            typing.cancel()
            with suppress(asyncio.CancelledError, AegisError):
                await typing
        if match is None:
            # The console ended by itself: the task says why.
            task = await self._session.task_ended(opened.task_id)
            error = failure(task)
            if error is not None:
                raise error
        return match

    async def _matched(
        self, events: AsyncIterator[StreamOutput | StreamGap], log: BinaryIO | None
    ) -> Match | None:
        found: Match | None = None
        clock, ends_at = asyncio.get_running_loop().time, None
        while True:
            try:
                # After the match only the digest is waited for, and not for long.
                async with asyncio.timeout_at(ends_at):
                    event = await anext(events)
            except (StopAsyncIteration, TimeoutError):
                return found
            if isinstance(event, StreamGap):
                self._reporter.gap(event.start, event.stop)
                continue
            self._seen_bytes += len(event.data)
            self._last = (self._last + event.data)[-_LAST_CHARS:]
            if log is not None:
                await asyncio.to_thread(_append, log, event.data)
            await self._reporter.console(event.data)
            match = self._watch.feed(event.data)
            if found is None and match is not None:
                found, ends_at = match, clock() + ELF_GRACE_S
            wants_elf = self._options.elf and self._watch.elf_sha256 is None
            if found is not None and not (found.expected and wants_elf):
                return found


async def _type(view: ResumedView, keys: AsyncIterator[bytes] | None) -> None:
    if keys is not None:
        async for data in keys:
            await view.send_input(data)


async def _closed(session: Session, task_id: str) -> None:
    """End the monitor's task at the agent, if there is still an agent."""
    try:
        params = TaskParams(task_id=task_id)
        await session.call_now("monitor.close", params, TaskInfo, deadline_s=CLOSE_S)
    except AegisError as exc:
        _log.info("monitor.not_closed", task_id=task_id, code=exc.code)


class _log_file:
    """The file for the console's bytes, or nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO | None:
        if self._path is not None:
            try:
                self._file = self._path.open("wb")
            except OSError as exc:
                raise OutputUnwritable(f"{self._path}: {exc.strerror}") from exc
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _append(log: BinaryIO, data: bytes) -> None:
    log.write(data)
    log.flush()
