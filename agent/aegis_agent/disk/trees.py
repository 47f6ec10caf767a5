"""
Trees that hostile code has written in: removed, measured and handed over without following a link.

Nothing else may write in the tree meanwhile (its workspace is locked, its last build is dead).
Depth costs neither stack nor descriptors: what lies deeper than `MAX_DEPTH` is moved up to be
removed, and is no part of a tree that is handed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_DEPTH: Final = 96

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_MAY_ALL: Final = 0o700


@contextmanager
def opened_folder(name: str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """Yield a descriptor of the folder `name`, which is no link; its owner may enter and write."""
    try:
        fd = os.open(name, _FOLDER, dir_fd=dir_fd)
    except PermissionError:
        # Ours, but closed to us by whoever wrote in it; a link would have been ELOOP or ENOTDIR.
        if not stat.S_ISDIR(os.lstat(name, dir_fd=dir_fd).st_mode):
            raise
        os.chmod(name, _OWNER_MAY_ALL, dir_fd=dir_fd)
        fd = os.open(name, _FOLDER, dir_fd=dir_fd)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & _OWNER_MAY_ALL != _OWNER_MAY_ALL:
            os.fchmod(fd, mode | _OWNER_MAY_ALL)
        yield fd
    finally:
        os.close(fd)


def is_folder(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=dir_fd).st_mode)
    except FileNotFoundError:
        return False


def remove_entry(name: str, dir_fd: int) -> None:
    """Remove `name`, whatever it is and however deep; nothing happens when it is not there."""
    if not is_folder(name, dir_fd):
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        return
    with opened_folder(name, dir_fd=dir_fd) as top:
        waiting = _empty(top, top, depth=0)
        while waiting:
            # What was too deep now lies directly below the top, and is emptied from there.
            deep = waiting.pop()
            with opened_folder(deep, dir_fd=top) as fd:
                waiting += _empty(fd, top, depth=1)
            os.rmdir(deep, dir_fd=top)
    os.rmdir(name, dir_fd=dir_fd)


def remove_tree(path: Path) -> None:
    """Remove `path`, whatever it is."""
    with opened_folder(path.parent) as parent:
        remove_entry(path.name, parent)


def hand_over(dir_fd: int, uid: int, gid: int, *, depth: int = 0) -> None:
    """Give everything below the folder `dir_fd`, itself included, to `uid` and `gid`."""
    _own_fd(dir_fd, uid, gid)
    for entry in list(os.scandir(dir_fd)):
        if not entry.is_dir(follow_symlinks=False):
            own_entry(entry.name, dir_fd, uid, gid)
        elif depth >= MAX_DEPTH:
            remove_entry(entry.name, dir_fd)
        else:
            with opened_folder(entry.name, dir_fd=dir_fd) as fd:
                hand_over(fd, uid, gid, depth=depth + 1)


def own_entry(name: str, dir_fd: int, uid: int, gid: int) -> None:
    """Give `name` itself, link or not, to `uid` and `gid`, if it is not theirs already."""
    found = os.lstat(name, dir_fd=dir_fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)


def tree_bytes(path: Path) -> int:
    """What the tree at `path` takes on the disk, in bytes."""
    total = 0
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            # Gone meanwhile, closed to us, or a path of more than 4096 bytes.
            continue
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            total += found.st_blocks * 512
            if stat.S_ISDIR(found.st_mode):
                waiting.append(folder / entry.name)
    return total


def _own_fd(fd: int, uid: int, gid: int) -> None:
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)


def _empty(fd: int, top: int, *, depth: int) -> list[str]:
    """Empty the folder `fd`; return the names below `top` that folders too deep were given."""
    moved: list[str] = []
    for entry in list(os.scandir(fd)):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=fd)
        elif depth >= MAX_DEPTH:
            name = f".aegis-too-deep-{os.urandom(8).hex()}"
            with opened_folder(entry.name, dir_fd=fd):
                pass  # a folder is moved only if its owner may write in it
            os.rename(entry.name, name, src_dir_fd=fd, dst_dir_fd=top)
            moved.append(name)
        else:
            with opened_folder(entry.name, dir_fd=fd) as child:
                moved += _empty(child, top, depth=depth + 1)
            os.rmdir(entry.name, dir_fd=fd)
    return moved
