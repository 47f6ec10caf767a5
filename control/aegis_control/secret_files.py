"""Files with secrets: 0600 from their first byte, and under their name only when complete."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_secret(path: Path, data: bytes) -> None:
    """Write `data` to `path` (0600) so that a reader sees the old file or the whole new one."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_or_make_secret(path: Path, size_bytes: int) -> bytes:
    """Return the content of `path`; when it is not there, make it of random bytes."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        data = os.urandom(size_bytes)
        write_secret(path, data)
        return data
