"""One board in the hands of one job: flash it, open its console, reset it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from aegis_links.spool import Spool
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardError,
    BoardGone,
    BoardNotGranted,
    ChipMismatch,
)
from aegis_protocol.rpc import FlashResult

from aegis_agent.boards import ports
from aegis_agent.boards.console import RETURN_DEADLINE_S, Console, ConsoleState
from aegis_agent.boards.flashing import FlashLimits, FlashRun
from aegis_agent.boards.images import FlashJob, check_images
from aegis_agent.boards.progress import Progress
from aegis_agent.boards.worker import Connected

log = structlog.get_logger()

_RETRY_S: Final = 0.1


class BoardDevice:
    """
    The board's port, with one user at a time, until `close`.

    locate       returns the port as it is now, or None while it is not there; it may block
    chip         what the configuration says; an image for another never reaches the port
    mac          the board's, where its id is made of it
    on_identity  called with id, MAC and chip once they were read

    `console_lock` is for who looks whether the console is open before opening it.
    """

    def __init__(
        self,
        board_id: str,
        locate: Callable[[], str | None],
        *,
        chip: str | None,
        mac: str | None,
        on_identity: Callable[[str, str, str], None],
        spool_bytes: int,
        limits: FlashLimits | None = None,
        console_return_s: float = RETURN_DEADLINE_S,
    ) -> None:
        self.board_id = board_id
        self._locate = locate
        self._chip = chip
        self._mac = mac
        self._on_identity = on_identity
        self._spool_bytes = spool_bytes
        self._limits = limits or FlashLimits()
        self._console_return_s = console_return_s
        self._console: Console | None = None
        self.console_lock = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._flashing: asyncio.Task[object] | None = None
        self._released = False

    def check(self, job: FlashJob) -> None:
        """
        Raise what keeps `job` from this board, as far as that is known without touching it:
        BoardNotGranted, BoardBusy, ChipMismatch, ImageInvalid.
        """
        self._check_usable()
        if self._chip is not None and self._chip != job.target:
            raise ChipMismatch(
                f"the image is for {job.target}, the board {self.board_id} is an {self._chip}",
                image=job.target,
                board=self._chip,
            )
        check_images(job.images)

    async def flash(self, job: FlashJob, on_progress: Progress) -> FlashResult:
        """
        Write and verify `job`; the console is paused meanwhile, and the board reset at the end.

        Raises what `check` raises, BoardGone, BoardSilent, VerifyFailed, FlashFailed,
        FlashTimedOut; the fact `flash` tells whether the board's flash is as it was ("kept") or
        undefined ("unknown"). Canceling it ends the worker and resets the board.
        """
        run = FlashRun(
            self.board_id,
            self._locate,
            job,
            expected_mac=self._mac,
            limits=self._limits,
            on_connected=self._identified,
        )
        async with self._opening:
            self.check(job)
            console = self._live_console()
            self._flashing = asyncio.current_task()
        try:
            if console is not None:
                await console.pause()
            result = await run.written(on_progress, reset_after=console is None)
        except (BoardGone, BoardBusy) as exc:  # gone, or another's: not to be reset by us
            self._tell_failed(exc, run)
            if console is not None:
                await uninterrupted(console.resume(deadline_s=0))
            raise
        except AegisError as exc:
            self._tell_failed(exc, run)
            await uninterrupted(self._revived(console))
            raise
        except BaseException:
            log.info("flash.interrupted", board_id=self.board_id, has_written=run.has_written)
            await uninterrupted(self._revived(console))
            raise
        else:
            await uninterrupted(self._revived(console) if console else self._present())
        finally:
            self._flashing = None
        log.info("flash.succeeded", board_id=self.board_id, duration_s=result.duration_s)
        return result

    async def open_console(self, *, baud: int, spool_dir: Path) -> Console:
        """
        Open the console, spooled into the new folder `spool_dir`; the board is not reset.

        Raises BoardNotGranted, BoardGone, BoardBusy, BoardError (a rate that the port lacks).
        """
        async with self._opening:
            self._check_usable()
            if self._live_console() is not None:
                raise BoardBusy(f"the console of {self.board_id} is open")
            spool = Spool(spool_dir, capacity_bytes=self._spool_bytes)
            console = Console(
                self.board_id,
                self._locate,
                baud,
                spool,
                return_deadline_s=self._console_return_s,
            )
            try:
                await console.start()
                self._check_usable()
            except BaseException:
                await uninterrupted(console.close())
                shutil.rmtree(spool_dir, ignore_errors=True)
                raise
            self._console = console
            return console

    async def reset(self) -> None:
        """
        Reset the board, through its console where that is open.

        Raises BoardNotGranted, BoardBusy, BoardGone, NoResetLines.
        """
        self._check_usable()
        console = self._live_console()
        if console is not None:
            await console.reset()
        else:
            await uninterrupted(asyncio.to_thread(self._reset))

    async def close(self) -> None:
        """End what runs on the board and give its port back; nothing is begun after it."""
        self._released = True
        flashing = self._flashing
        if flashing is not None:
            flashing.cancel()
            await asyncio.wait([flashing])
        async with self._opening:
            console, self._console = self._console, None
        if console is not None:
            await console.close()

    def _check_usable(self) -> None:
        if self._released:
            raise BoardNotGranted(f"the job does not hold {self.board_id} any more")
        if self._flashing is not None:
            raise BoardBusy(f"{self.board_id} is being flashed")

    def _live_console(self) -> Console | None:
        console = self._console
        if console is None or console.state is ConsoleState.CLOSED:
            return None
        return console

    def _identified(self, found: Connected) -> None:
        if found.mac is not None:
            self._on_identity(self.board_id, found.mac, found.chip)

    def _tell_failed(self, exc: AegisError, run: FlashRun) -> None:
        exc.facts["flash"] = "unknown" if run.has_written else "kept"
        log.info("flash.failed", board_id=self.board_id, code=exc.code, facts=exc.facts)

    async def _revived(self, console: Console | None) -> None:
        """Reset the board, so that it runs what is on its flash; a console shows all of it."""
        try:
            if console is not None:
                await console.resume(deadline_s=self._limits.return_s)
                await console.reset()
            else:
                await asyncio.to_thread(self._reset)
        except BoardError as exc:
            log.info("board.not_reset", board_id=self.board_id, code=exc.code)

    async def _present(self) -> None:
        """Wait for a port that a reset took away, so that the next request finds it."""
        gives_up_at = time.monotonic() + self._limits.return_s
        while True:
            is_there = await asyncio.to_thread(self._locate) is not None
            if is_there or time.monotonic() > gives_up_at:
                return
            await asyncio.sleep(_RETRY_S)

    def _reset(self) -> None:
        port = self._locate()
        if port is None:
            raise BoardGone(f"{self.board_id} is not connected")
        ports.reset_board(port)
