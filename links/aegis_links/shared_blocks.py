"""
Blocks of files that are being sent, one copy for all who send the same file.

A block lives as long as somebody holds it: an image that goes to many clients is in memory once,
and at most as much of it as they are apart. Files are not mapped: one that is cut while it is
mapped would end the process.
"""

from __future__ import annotations

import os
from io import FileIO
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from aegis_links.tasks import in_thread

BLOCK_BYTES: Final = 256 * 1024

Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size, time of the last change: another text of a file is another file."""


class Block:
    """Some bytes of a file, from a multiple of BLOCK_BYTES on."""

    __slots__ = ("__weakref__", "data", "start")

    def __init__(self, start: int, data: bytes) -> None:
        self.start = start
        self.data = data


_BLOCKS: Final[WeakValueDictionary[tuple[Identity, int], Block]] = WeakValueDictionary()


def identity_of(stat: os.stat_result) -> Identity:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


async def block_of(file: FileIO, identity: Identity, offset: int) -> Block:
    """Return the block that `offset` lies in, read by a thread if nobody has it. Raises OSError."""
    start = offset - offset % BLOCK_BYTES
    found = _BLOCKS.get((identity, start))
    if found is None:
        read = Block(start, await in_thread(_read, file, start))
        # Somebody else may have read it meanwhile: then theirs, and this one goes.
        found = _BLOCKS.setdefault((identity, start), read)
    return found


def held_bytes() -> int:
    """How much of all files is in memory now."""
    return sum(len(block.data) for block in list(_BLOCKS.values()))


def _read(file: FileIO, start: int) -> bytes:
    file.seek(start)
    return file.read(BLOCK_BYTES)
