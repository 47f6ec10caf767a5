# SPDX-License-Identifier: GPL-2.0-or-later
"""Unix sockets of a board: claiming a path, knowing who called, closing what is left."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aegis_protocol.failures.virtual_board import BadBoardSetting, BoardAddressTaken

MAX_PATH_BYTES: Final = 107  # sun_path holds 108 with its end (man 7 unix)
CLOSE_DEADLINE_S: Final = 2.0


def listen(path: Path) -> socket.socket:
    """
    Return a socket that listens at `path`, for this user alone; a dead one there is replaced.

    Raises
    ------
    BoardAddressTaken   somebody listens there, or the path is no socket
    BadBoardSetting     no socket can be at that path
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadBoardSetting(
            f"The path {path} is too long for a socket: at most {MAX_PATH_BYTES} bytes."
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(8)
    except OSError as exc:
        listener.close()
        raise BadBoardSetting(f"No socket can be made at {path}: {exc.strerror}.") from exc
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _clear(path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise BoardAddressTaken(f"{path} exists and is no socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)  # left by a process that was killed
            return
    raise BoardAddressTaken(f"Another program listens at {path}.")


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, str]:
    """Return the process id and the program of who is at the other end."""
    raw = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, _uid, _gid = struct.unpack("3i", raw)
    try:
        program = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        program = ""
    return pid, program


async def close_clients(clients: Mapping[asyncio.Task[None], asyncio.StreamWriter]) -> None:
    """Cut every client off and wait until its task has ended."""
    tasks = list(clients)
    for writer in clients.values():
        writer.transport.abort()
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_DEADLINE_S)
