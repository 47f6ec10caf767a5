"""
The socket in the state directory: for this machine's root and control's own user.

It is 0600 from the start, in a folder that is 0700, and every peer's user is checked besides.
Both ends reach it by a descriptor of the folder, because a socket's path has 107 bytes at most.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UCRED = struct.Struct("3i")


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket bound to `path`; whatever lay there is replaced, and it is removed at the end."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with short_path(path) as short:
            before = os.umask(0o177)
            try:
                sock.bind(short)
            finally:
                os.umask(before)
        yield sock
    finally:
        sock.close()
        path.unlink(missing_ok=True)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of a few bytes that leads to `path` while the block lasts (Linux)."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def peer_is_trusted(sock: socket.socket) -> bool:
    """Tell whether root or our own user is at the other end (SO_PEERCRED, unix(7))."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())
