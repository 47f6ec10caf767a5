"""
Writing images to a board: the daemon's side of the esptool worker.

The worker is a process of its own, told what to do on its standard input and heard on its
standard output, one JSON object a line. It gets a clean folder and environment. The daemon owns
its time: a deadline for the whole, another for silence (esptool waits for ever when the stub never
greets). Canceled, it is interrupted, killed after 5 s, and the board is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import (
    BoardBusy,
    BoardError,
    BoardGone,
    BoardSilent,
    ChipMismatch,
    FlashCanceled,
    FlashFailed,
    FlashTimedOut,
    ImageInvalid,
    VerifyFailed,
)
from aegis_protocol.manifest import FlashImage, FlashSettings
from aegis_protocol.rpc import FlashedRegion, FlashResult

from aegis_agent.boards import ports

log = structlog.get_logger()

Progress = Callable[[str, int, int, str], None]

_SILENCE_S: Final = 45.0
_FIXED_S: Final = 60.0
_ERASE_ALL_S: Final = 180.0
_KILL_AFTER_S: Final = 5.0
_MAX_LINE_BYTES: Final = 65_536
_SAY_EVERY_S: Final = 0.1
# EN low, then IO0 low while EN rises, then IO0 free: what the auto-reset circuit of a development
# kit does. esptool's own sequence is an ioctl that only a real device has.
_URL_RESET: Final = "[esptool]\ncustom_reset_sequence = D0|R1|W0.1|D1|R0|W0.05|D0\n"

_BY_CODE: Final[dict[str, type[AegisError]]] = {
    cls.code: cls
    for cls in (
        BoardBusy,
        BoardGone,
        BoardSilent,
        ChipMismatch,
        FlashFailed,
        ImageInvalid,
        VerifyFailed,
    )
}


async def write_images(
    board_id: str,
    port: str,
    images: Sequence[tuple[FlashImage, Path]],
    *,
    target: str,
    settings: FlashSettings,
    baud: int,
    erase_all: bool,
    elf_sha256: str | None,
    reset_after: bool,
    on_progress: Progress,
) -> FlashResult:
    """
    Write `images` to the board behind `port` and verify each by the chip's own MD5 of its flash.

    on_progress  (phase, bytes done, bytes in all, image), at most ten times a second

    Raises
    ------
    ChipMismatch  the board is another chip; nothing was written
    BoardGone, BoardBusy, BoardSilent, VerifyFailed, FlashFailed, FlashTimedOut
    """
    wish = {
        "port": port,
        "target": target,
        "baud": baud,
        "erase_all": erase_all,
        "modem_lines": await asyncio.to_thread(ports.has_modem_lines, port),
        "reset_after": reset_after,
        "settings": settings.model_dump(),
        "images": [
            {"name": image.name, "offset": image.offset, "path": str(path)}
            for image, path in images
        ],
    }
    size = sum(image.size_bytes for image, _ in images)
    # Ten bits a byte on the wire, and twice that for erasing, verifying and slow adapters.
    deadline_s = _FIXED_S + 3 * size * 10 / min(baud, 460_800) + erase_all * _ERASE_ALL_S
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aegis-flash-") as folder:
        if "://" in port:
            (Path(folder) / "esptool.cfg").write_text(_URL_RESET)
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aegis_agent.esptool_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            limit=_MAX_LINE_BYTES,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(deadline_s):
                found = await _converse(worker, wish, on_progress)
        except TimeoutError as exc:
            await _end(worker)
            await _reset(port)
            raise FlashTimedOut(
                f"{board_id} was not flashed within {deadline_s:.0f} s", board=board_id
            ) from exc
        except asyncio.CancelledError:
            await asyncio.shield(_canceled(worker, board_id, port))
            raise
        finally:
            await asyncio.shield(_end(worker))
    regions = tuple(
        FlashedRegion(
            name=image.name, offset=image.offset, size_bytes=image.size_bytes, sha256=image.sha256
        )
        for image, _ in images
    )
    return FlashResult(
        board_id=board_id,
        chip=str(found["chip"]),
        mac=found.get("mac"),
        regions=regions,
        elf_sha256=elf_sha256,
        duration_s=round(time.monotonic() - started, 3),
    )


async def _converse(
    worker: asyncio.subprocess.Process, wish: dict[str, Any], on_progress: Progress
) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(wish).encode() + b"\n")
    with contextlib.suppress(ConnectionError):
        await worker.stdin.drain()
    worker.stdin.close()
    found: dict[str, Any] = {}
    said_at = 0.0
    while True:
        async with asyncio.timeout(_SILENCE_S):
            line = await worker.stdout.readline()
        if not line:
            raise FlashFailed("the flash tool ended without a word")
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError) as exc:
            raise FlashFailed("the flash tool said something that is no event") from exc
        match kind:
            case "connected":
                found = event
                on_progress("connected", 0, 0, str(event.get("description", "")))
            case "progress":
                now = time.monotonic()
                whole = event["done"] >= event["total"]
                if whole or now - said_at >= _SAY_EVERY_S:
                    said_at = now
                    on_progress(event["phase"], event["done"], event["total"], event["image"])
            case "done":
                return found
            case "failed":
                cls = _BY_CODE.get(str(event.get("code")), FlashFailed)
                raise cls(str(event.get("message", "")), **event.get("facts", {}))
            case _:
                continue


async def _canceled(worker: asyncio.subprocess.Process, board_id: str, port: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.send_signal(signal.SIGINT)
    await _end(worker)
    await _reset(port)
    log.info("flash.canceled", board_id=board_id, code=FlashCanceled.code)


async def _end(worker: asyncio.subprocess.Process) -> None:
    """Wait for the worker's end, 5 s at most; then kill it and all that it started."""
    try:
        async with asyncio.timeout(_KILL_AFTER_S):
            await worker.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        await worker.wait()


async def _reset(port: str) -> None:
    """Take the board out of the loader, where a worker that was killed has left it."""

    def pulse() -> None:
        device = ports.open_port(port, 115_200)
        try:
            ports.pulse_reset(device)
        finally:
            device.close()

    try:
        await asyncio.to_thread(pulse)
    except BoardError as exc:
        log.warning("board.not_reset", port=port, code=exc.code)


def _environment(folder: str) -> dict[str, str]:
    """No variable of ours reaches esptool but what Python needs; its settings file is ours."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": folder,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ESPTOOL_CFGFILE": f"{folder}/esptool.cfg",
    }
