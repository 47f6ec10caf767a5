"""One child process of an installation: its output line by line, a deadline, its whole tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from aegis_protocol.failures.toolchain import InstallFailed

_TAIL_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 65_536
_READABLE_BY_OTHERS: Final = ("/bin/sh", "-c", 'umask 022 && exec "$@"', "sh")
"""What is installed is for builds, which run as another user. (uvloop takes no `umask=`.)"""
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
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async with asyncio.timeout(deadline_s), _child(argv, environment, cwd) as (process, lines):
            await _read_lines(lines, tail, on_line)
            status = await process.wait()
    except TimeoutError as exc:
        raise InstallFailed(
            f"{_name(argv)} did not end within {deadline_s:.0f} s", output=list(tail)
        ) from exc
    if status != 0:
        last = next((line for line in reversed(tail) if line.strip()), "it said nothing")
        raise InstallFailed(
            f"{_name(argv)} failed with status {status}: {last[:500]}", output=list(tail)
        )


@contextlib.asynccontextmanager
async def _child(
    argv: Sequence[str], environment: Mapping[str, str], cwd: Path | None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """The child and its output; it leads a process group, which ends with the block."""
    # A socket of our own: it closes here, also when a process that left the group still holds the
    # other end; and every event loop agrees that its transport is the one who closes it.
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_READABLE_BY_OTHERS,
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs.fileno(),
                stderr=theirs.fileno(),
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )
    except BaseException as exc:
        ours.close()
        if isinstance(exc, OSError):
            raise InstallFailed(f"{argv[0]} can't be started: {exc.strerror}") from exc
        raise
    try:
        lines, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT_BYTES)
        try:
            yield process, lines
        finally:
            writer.close()
    finally:
        # Also after a good end: what it left in the background belongs to nobody.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _read_lines(
    lines: asyncio.StreamReader, tail: deque[str], on_line: Callable[[str], None]
) -> None:
    while True:
        try:
            raw = await lines.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            raw = exc.partial
        except asyncio.LimitOverrunError as exc:
            raw = await lines.read(min(exc.consumed, _LINE_LIMIT_BYTES))
        if not raw:
            return
        line = _CREDENTIALS.sub("***@", raw.decode(errors="replace").rstrip())
        tail.append(line)
        on_line(line)


def _name(argv: Sequence[str]) -> str:
    return " ".join([Path(argv[0]).name, *argv[1:3]])
