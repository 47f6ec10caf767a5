"""
The esptool worker as the daemon sees it: a process that is told once what to do, and says how
it goes, one JSON object a line.

It gets a clean folder and environment, and its standard input stays open: when that closes, by
our will or because we were killed, it lets the port go and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.failures.board import FlashFailed
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

log = structlog.get_logger()

KILL_AFTER_S: Final = 5.0
_MAX_LINE_BYTES: Final = 65_536
_LAST_WORDS_BYTES: Final = 4096
# EN low, then IO0 low while EN rises, then IO0 free: what the auto-reset circuit of a development
# kit does. esptool's own sequence is an ioctl, for which a virtual board's socket has no ear.
_VIRTUAL_RESET: Final = "custom_reset_sequence = D0|R1|W0.1|D1|R0|W0.05|D0\n"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PhaseBegan(_Event):
    """connect, stub, erase (the whole flash), write; each has a time of its own."""

    event: Literal["phase"]
    phase: Literal["connect", "stub", "erase", "write"]


class Connected(_Event):
    event: Literal["connected"]
    chip: str
    mac: str | None
    description: str


class Wrote(_Event):
    """image: its index in the wish. done, total: of it as it travels, perhaps compressed."""

    event: Literal["progress"]
    image: int
    done: int
    total: int


class Done(_Event):
    """sha256: of each image of the wish, as its bytes are on the flash now."""

    event: Literal["done"]
    sha256: tuple[str, ...]


class Failed(_Event):
    event: Literal["failed"]
    code: str
    message: str
    facts: dict[str, Any] = Field(default_factory=dict)


WorkerEvent: TypeAlias = Annotated[
    PhaseBegan | Connected | Wrote | Done | Failed, Field(discriminator="event")
]
_EVENT: Final[TypeAdapter[WorkerEvent]] = TypeAdapter(WorkerEvent)


class FlashWorker:
    """A worker that runs."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder

    async def next_event(self) -> WorkerEvent:
        """Return what it says next. Raises FlashFailed when it ends, or says what is none."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
            if line:
                return _EVENT.validate_json(line)
        except (ValidationError, ValueError) as exc:
            raise FlashFailed("the flash tool said something that is no event") from exc
        log.error("flash.worker_crashed", words=_last_words(self._folder))
        raise FlashFailed("the flash tool ended without a word")


@asynccontextmanager
async def flash_worker(
    wish: Mapping[str, Any], *, kill_after_s: float = KILL_AFTER_S
) -> AsyncIterator[FlashWorker]:
    """
    Run a worker for the time of the block. At its end the worker is asked to end too, and killed
    with all that it started after `kill_after_s`; it has ended when the block is left.
    """
    with tempfile.TemporaryDirectory(prefix="aegis-flash-") as name:
        folder = Path(name)
        custom = _VIRTUAL_RESET if str(wish["port"]).startswith("virtual:") else ""
        (folder / "esptool.cfg").write_text(f"[esptool]\n{custom}")
        with (folder / "stderr").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "aegis_agent.esptool_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=_environment(folder),
                limit=_MAX_LINE_BYTES,
                start_new_session=True,
            )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(wish).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            yield FlashWorker(process, folder)
        finally:
            await uninterrupted(_end(process, kill_after_s))


async def _end(process: asyncio.subprocess.Process, kill_after_s: float) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(kill_after_s):
            await process.wait()
    except TimeoutError:
        log.warning("flash.worker_killed", pid=process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """No variable of ours reaches esptool but what Python needs; its settings file is ours."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ESPTOOL_CFGFILE": str(folder / "esptool.cfg"),
    }


def _last_words(folder: Path) -> str:
    with contextlib.suppress(OSError):
        words = (folder / "stderr").read_bytes()[-_LAST_WORDS_BYTES:]
        return words.decode(errors="replace").strip()
    return ""
