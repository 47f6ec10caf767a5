"""One child process of an installation: its output line by line, a deadline, its whole tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from aegis_protocol.failures.toolchain import InstallFailed

_TAIL_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 65_536
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    deadline_s: float,
    cwd: Path | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    """
    Run `argv` to its end; each line of its output (both streams) goes to `on_line`, without
    credentials that stand in a URL.

    However this ends, canceled included, no process of the child's group is left.

    Raises InstallFailed with its last lines: another status than 0, no such program, the deadline.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
            umask=0o022,
            limit=_LINE_LIMIT_BYTES,
        )
    except OSError as exc:
        raise InstallFailed(f"{argv[0]} can't be started: {exc.strerror}") from exc
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async with asyncio.timeout(deadline_s):
            await _read_lines(process, tail, on_line)
            status = await process.wait()
    except TimeoutError as exc:
        raise InstallFailed(
            f"{_name(argv)} did not end within {deadline_s:.0f} s", output=list(tail)
        ) from exc
    finally:
        # Also after a good end: what it left in the background belongs to nobody.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if status != 0:
        last = next((line for line in reversed(tail) if line.strip()), "it said nothing")
        raise InstallFailed(
            f"{_name(argv)} failed with status {status}: {last[:500]}", output=list(tail)
        )


async def _read_lines(
    process: asyncio.subprocess.Process, tail: deque[str], on_line: Callable[[str], None]
) -> None:
    assert process.stdout is not None
    while True:
        try:
            raw = await process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            raw = exc.partial
        except asyncio.LimitOverrunError as exc:
            raw = await process.stdout.read(exc.consumed)
        if not raw:
            return
        line = _CREDENTIALS.sub("***@", raw.decode(errors="replace").rstrip())
        tail.append(line)
        on_line(line)


def _name(argv: Sequence[str]) -> str:
    return " ".join([Path(argv[0]).name, *argv[1:3]])
