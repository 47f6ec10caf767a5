"""Folders that go with this process, in whatever haste it leaves."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_IN_USE: Final[set[Path]] = set()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that others can't read, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="espctl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _IN_USE.add(folder)
        try:
            yield folder
        finally:
            _IN_USE.discard(folder)


def remove_all() -> None:
    """Remove what is in use now: for whoever ends the process without leaving the blocks."""
    for folder in tuple(_IN_USE):
        shutil.rmtree(folder, ignore_errors=True)
