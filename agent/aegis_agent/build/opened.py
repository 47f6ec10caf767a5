"""Opening what a build left behind: never through a link, only an ordinary file of sane size."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from aegis_protocol.failures.build import ArtifactMissing, ArtifactUnsafe

_CHUNK_BYTES: Final = 1 << 20
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a named pipe must not wait for its writer.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def copy_out(root: Path, path: PurePosixPath, to: Path, *, max_bytes: int) -> None:
    """
    Copy the file at the relative `path` below `root` to `to`, a new file.

    Raises ArtifactMissing, or ArtifactUnsafe for a link on the way, for anything but an ordinary
    file, and for one larger than `max_bytes`.
    """
    try:
        with to.open("xb") as copy:
            for chunk in _chunks(root, path, max_bytes):
                copy.write(chunk)
    except BaseException:
        to.unlink(missing_ok=True)
        raise


def read_out(root: Path, path: PurePosixPath, *, max_bytes: int) -> bytes:
    """Return the content of such a file; raises as `copy_out` does."""
    return b"".join(_chunks(root, path, max_bytes))


def _chunks(root: Path, path: PurePosixPath, max_bytes: int) -> Iterator[bytes]:
    source = _open(root, path)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactUnsafe(f"{path} is no ordinary file", path=str(path))
        if found.st_size > max_bytes:
            raise ArtifactUnsafe(
                f"{path} has {found.st_size} bytes; {max_bytes} are allowed", path=str(path)
            )
        left = found.st_size
        while left and (data := os.read(source, min(left, _CHUNK_BYTES))):
            yield data
            left -= len(data)
    finally:
        os.close(source)


def _open(root: Path, path: PurePosixPath) -> int:
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ArtifactUnsafe(f"{path} lies outside of the build", path=str(path))
    *folders, name = path.parts
    at = os.open(root, _FOLDER)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, _FILE, dir_fd=at)
    except FileNotFoundError as exc:
        raise ArtifactMissing(f"the build did not make {path}", path=str(path)) from exc
    except OSError as exc:
        # ELOOP and ENOTDIR: a link; ENXIO: a socket; EACCES: closed to us.
        raise ArtifactUnsafe(f"{path} can't be read: {exc.strerror}", path=str(path)) from exc
    finally:
        os.close(at)
