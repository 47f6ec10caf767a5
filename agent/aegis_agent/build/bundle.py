"""flash_bundle.tar.gz: manifest, signature and images; the same content is the same bytes."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Sequence
from pathlib import Path


def write_bundle(to: Path, members: Sequence[Path]) -> None:
    """Write the files `members`, in this order and under their own names, without any time."""
    with (
        to.open("xb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.size = member.stat().st_size
            entry.mode = 0o644
            with member.open("rb") as file:
                tar.addfile(entry, file)
