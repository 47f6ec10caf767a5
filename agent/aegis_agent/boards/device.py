"""One board in the hands of one job: flash it, open its console, reset it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from aegis_links.spool import Spool
from aegis_protocol.failures.board import BoardBusy, BoardError, ChipMismatch
from aegis_protocol.manifest import FlashImage, FlashSettings
from aegis_protocol.rpc import FlashResult

from aegis_agent.boards import ports
from aegis_agent.boards.console import Console
from aegis_agent.boards.flashing import Progress, write_images

log = structlog.get_logger()


@dataclass(frozen=True)
class FlashJob:
    """What to write: images with their files, not overlapping. baud: of the port meanwhile."""

    images: tuple[tuple[FlashImage, Path], ...]
    target: str
    settings: FlashSettings
    baud: int
    erase_all: bool
    elf_sha256: str | None


class BoardDevice:
    """
    The board's port, with one user at a time.

    chip   as far as it is known; an image for another is refused before the port is touched
    on_mac called with the MAC once it was read
    """

    def __init__(
        self,
        board_id: str,
        port: str,
        chip: str | None,
        *,
        on_mac: Callable[[str, str, str], None],
        spool_bytes: int,
    ) -> None:
        self.board_id = board_id
        self._port = port
        self._chip = chip
        self._on_mac = on_mac
        self._spool_bytes = spool_bytes
        self._console: Console | None = None
        self._flashing = asyncio.Lock()

    async def flash(self, job: FlashJob, on_progress: Progress) -> FlashResult:
        """
        Write and verify `job`; the console is paused meanwhile, and the board reset at the end.

        Raises ChipMismatch (nothing was written), BoardGone, BoardSilent, VerifyFailed,
        FlashFailed, FlashTimedOut. Canceling it ends the worker and resets the board.
        """
        if self._flashing.locked():
            raise BoardBusy(f"{self.board_id} is being flashed")
        if self._chip is not None and self._chip != job.target:
            raise ChipMismatch(
                f"the image is for {job.target}, the board {self.board_id} is an {self._chip}",
                image=job.target,
                board=self._chip,
            )
        async with self._flashing:
            console = self._console
            if console is not None:
                await console.pause()
            try:
                result = await write_images(
                    self.board_id,
                    self._port,
                    job.images,
                    target=job.target,
                    settings=job.settings,
                    baud=job.baud,
                    erase_all=job.erase_all,
                    elf_sha256=job.elf_sha256,
                    reset_after=console is None,
                    on_progress=on_progress,
                )
            finally:
                if console is not None:
                    await asyncio.shield(self._give_back(console))
        if result.mac is not None:
            self._on_mac(self.board_id, result.mac, result.chip)
        return result

    async def open_console(self, *, baud: int, spool_dir: Path) -> Console:
        """Open the console, spooled into the new folder `spool_dir`."""
        if self._flashing.locked():
            raise BoardBusy(f"{self.board_id} is being flashed")
        if self._console is not None and not self._console.spool.finished:
            raise BoardBusy(f"the console of {self.board_id} is open")
        spool = Spool(spool_dir, capacity_bytes=self._spool_bytes)
        console = Console(self.board_id, self._port, baud, spool)
        try:
            await console.start()
        except BaseException:
            spool.close()
            raise
        self._console = console
        return console

    async def reset(self) -> None:
        """Reset the board, through its console where that is open."""
        if self._flashing.locked():
            raise BoardBusy(f"{self.board_id} is being flashed")
        if self._console is not None and not self._console.spool.finished:
            await self._console.reset()
        else:
            await asyncio.to_thread(self._reset)

    async def close(self) -> None:
        if self._console is not None:
            await self._console.close()
            self._console = None

    async def _give_back(self, console: Console) -> None:
        await console.resume()
        try:
            await console.reset()
        except (BoardError, TimeoutError) as exc:
            log.warning("board.not_reset", board_id=self.board_id, detail=str(exc))

    def _reset(self) -> None:
        device = ports.open_port(self._port, 115_200)
        try:
            ports.pulse_reset(device)
        finally:
            device.close()
