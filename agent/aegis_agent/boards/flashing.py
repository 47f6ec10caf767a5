"""
Writing images to a board: the daemon's side of the esptool worker.

The daemon owns the time: a deadline for the whole, and one for silence in each phase (esptool
waits for ever when the stub never greets). The worker has ended when this returns or raises;
bringing a board that was left in its loader back to life is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, assert_never

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardError,
    BoardGone,
    BoardNotGranted,
    BoardSilent,
    ChipMismatch,
    FlashFailed,
    FlashTimedOut,
    ImageInvalid,
    VerifyFailed,
)
from aegis_protocol.rpc import FlashedRegion, FlashResult

from aegis_agent.boards import ports
from aegis_agent.boards.images import FlashJob
from aegis_agent.boards.progress import FlashProgress, Progress
from aegis_agent.boards.worker import (
    KILL_AFTER_S,
    Connected,
    Done,
    Failed,
    FlashWorker,
    PhaseBegan,
    Wrote,
    flash_worker,
)

log = structlog.get_logger()

_RETRY_S: Final = 0.1
_REMOTE_FACTOR: Final = 4
_BY_CODE: Final[dict[str, type[AegisError]]] = {
    cls.code: cls
    for cls in (
        BoardBusy,
        BoardError,
        BoardGone,
        BoardNotGranted,
        BoardSilent,
        ChipMismatch,
        FlashFailed,
        ImageInvalid,
        VerifyFailed,
    )
}


@dataclass(frozen=True)
class FlashLimits:
    """
    connect_s, stub_s, erase_s, write_s  how long a worker may be silent in each phase
    whole_s       for the whole, besides what the bytes need on the wire
    kill_after_s  from asking a worker to end to killing it
    return_s      for a port that a reset took away
    """

    connect_s: float = 40.0
    stub_s: float = 20.0
    erase_s: float = 180.0
    write_s: float = 45.0
    whole_s: float = 60.0
    kill_after_s: float = KILL_AFTER_S
    return_s: float = 5.0

    def whole_of(self, job: FlashJob) -> float:
        """Seconds for all of `job`: ten bits a byte, thrice for erasing, verifying, slow wires."""
        size_bytes = sum(image.size_bytes for image, _ in job.images)
        wire_s = size_bytes * 10 / min(job.baud, 460_800)
        return self.whole_s + 3 * wire_s + (self.erase_s if job.erase_all else 0)

    def silence_of(self, phase: str, job: FlashJob) -> float:
        """Seconds until the next word in `phase`; the chip hashes 8 s per MiB at the slowest."""
        if phase != "write":
            return {"connect": self.connect_s, "stub": self.stub_s, "erase": self.erase_s}[phase]
        largest = max(image.size_bytes for image, _ in job.images)
        return self.write_s + 8 * largest / (1 << 20)

    def on(self, port: str) -> FlashLimits:
        """These limits for `port`: by rfc2217 every setting of a port is a conversation."""
        if not port.startswith("rfc2217:"):
            return self
        return replace(
            self,
            connect_s=self.connect_s * _REMOTE_FACTOR,
            stub_s=self.stub_s * _REMOTE_FACTOR,
            write_s=self.write_s * _REMOTE_FACTOR,
            whole_s=self.whole_s * _REMOTE_FACTOR,
        )


class FlashRun:
    """
    One attempt to write `job`.

    locate        returns the board's port as it is now, or None; it may block
    expected_mac  the board's, where its id is made of it: another one there is not ours to flash
    on_connected  called with what was read of the board, before anything is written
    has_written   whether anything on the flash may have changed
    """

    def __init__(
        self,
        board_id: str,
        locate: Callable[[], str | None],
        job: FlashJob,
        *,
        expected_mac: str | None,
        limits: FlashLimits,
        on_connected: Callable[[Connected], None],
    ) -> None:
        self.has_written = False
        self._board_id = board_id
        self._locate = locate
        self._job = job
        self._images = sorted(job.images, key=lambda pair: pair[0].offset)
        self._expected_mac = expected_mac
        self._limits = limits
        self._on_connected = on_connected
        self._found: Connected | None = None

    async def written(self, on_progress: Progress, *, reset_after: bool) -> FlashResult:
        """
        Write and verify, by the chip's own MD5 of its flash.

        reset_after  let the worker reset the board at the end, where its port can

        Raises
        ------
        ChipMismatch, ImageInvalid, BoardNotGranted   nothing was written
        BoardGone, BoardBusy, BoardSilent, VerifyFailed, FlashFailed, FlashTimedOut
        """
        began = time.monotonic()
        port = await asyncio.to_thread(self._locate)
        if port is None:
            raise BoardGone(f"{self._board_id} is not connected")
        self._limits = self._limits.on(port)
        whole_s = self._limits.whole_of(self._job)
        progress = FlashProgress([image for image, _ in self._images], on_progress)
        try:
            async with asyncio.timeout(whole_s):
                done = await self._done(port, progress, reset_after=reset_after)
        except TimeoutError as exc:
            raise FlashTimedOut(f"{self._board_id} was not flashed within {whole_s:.0f} s") from exc
        progress.finished()
        sha256 = {
            image.offset: digest
            for (image, _), digest in zip(self._images, done.sha256, strict=True)
        }
        assert self._found is not None
        return FlashResult(
            board_id=self._board_id,
            chip=self._found.chip,
            mac=self._found.mac,
            regions=tuple(
                FlashedRegion(
                    name=image.name,
                    offset=image.offset,
                    size_bytes=image.size_bytes,
                    sha256=sha256[image.offset],
                )
                for image, _ in self._job.images
            ),
            elf_sha256=self._job.elf_sha256,
            duration_s=round(time.monotonic() - began, 3),
        )

    async def _done(self, port: str, progress: FlashProgress, *, reset_after: bool) -> Done:
        has_lines = await asyncio.to_thread(ports.has_modem_lines, port)
        reset_after = reset_after and has_lines
        try:
            return await self._worked(
                port, progress, reset_first=has_lines, reset_after=reset_after
            )
        except BoardGone:
            # A port that its board takes along on reset is back in a moment, with the loader.
            back = await self._returned() if has_lines and self._found is None else None
            if back is None:
                raise
        log.info("flash.port_returned", board_id=self._board_id)
        return await self._worked(back, progress, reset_first=False, reset_after=reset_after)

    async def _returned(self) -> str | None:
        """Wait until the port can be opened again; None when it can't in time."""
        gives_up_at = time.monotonic() + self._limits.return_s
        while time.monotonic() < gives_up_at:
            port = await asyncio.to_thread(self._locate)
            with contextlib.suppress(BoardError):
                if port is not None:
                    await uninterrupted(asyncio.to_thread(_touched, port))
                    return port
            await asyncio.sleep(_RETRY_S)
        return None

    async def _worked(
        self, port: str, progress: FlashProgress, *, reset_first: bool, reset_after: bool
    ) -> Done:
        wish = {
            "port": port,
            "target": self._job.target,
            "mac": self._expected_mac,
            "baud": self._job.baud,
            "erase_all": self._job.erase_all,
            "reset_first": reset_first,
            "reset_after": reset_after,
            "settings": self._job.settings.model_dump(),
            "images": [image.model_dump() | {"path": str(path)} for image, path in self._images],
        }
        async with flash_worker(wish, kill_after_s=self._limits.kill_after_s) as worker:
            return await self._heard(worker, progress)

    async def _heard(self, worker: FlashWorker, progress: FlashProgress) -> Done:
        phase = "connect"
        while True:
            silence_s = self._limits.silence_of(phase, self._job)
            try:
                async with asyncio.timeout(silence_s):
                    event = await worker.next_event()
            except TimeoutError as exc:
                raise FlashTimedOut(
                    f"{self._board_id} said nothing for {silence_s:.0f} s", phase=phase
                ) from exc
            match event:
                case PhaseBegan():
                    phase = event.phase
                    self.has_written |= phase in ("erase", "write")
                    if phase == "erase":
                        progress.erasing()
                case Connected():
                    self._found = event
                    self._on_connected(event)
                    progress.connected(event.description)
                case Wrote():
                    phase = "write"
                    progress.wrote(event.image, event.done / max(1, event.total))
                case Done():
                    return event
                case Failed():
                    # esptool looks at all that it is to write before it erases anything.
                    refused = event.code in (ChipMismatch.code, ImageInvalid.code)
                    self.has_written &= not refused
                    raise _BY_CODE.get(event.code, FlashFailed)(event.message, **event.facts)
                case _:
                    assert_never(event)


def _touched(port: str) -> None:
    ports.close_port(ports.open_port(port, 115_200))
