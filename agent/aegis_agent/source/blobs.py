"""
The files that have arrived, each under its SHA-256, apart for each identity.

Apart, so that nobody learns from an answer of `missing` what another has sent.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegis_protocol.failures.source import UploadIncomplete
from aegis_protocol.source import SourceFile

_PART: Final = "part-"


def identity_key(identity: str) -> str:
    """A folder name for `identity`, which may hold anything."""
    return sha256(identity.encode()).hexdigest()[:32]


class Blobs:
    """root: a folder of this agent's own, which no build can enter."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in root.glob(f"*/{_PART}*"):
            part.unlink(missing_ok=True)

    def path(self, identity: str, digest: str) -> Path:
        return self._folder(identity) / digest[:2] / digest

    def has(self, identity: str, blob: SourceFile) -> bool:
        """Tell whether `blob` is here, whole; that counts as a use of it."""
        path = self.path(identity, blob.sha256)
        try:
            if path.stat().st_size != blob.size_bytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def put(self, identity: str, blob: SourceFile, chunks: Iterable[bytes]) -> None:
        """Keep `chunks` as `blob`; UploadIncomplete when they are something else."""
        folder = self._folder(identity)
        folder.mkdir(exist_ok=True, mode=0o700)
        fd, name = tempfile.mkstemp(dir=folder, prefix=_PART)
        part = Path(name)
        try:
            digest = sha256()
            with os.fdopen(fd, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != blob.sha256:
                raise UploadIncomplete(f"{blob.path} did not arrive as it was announced")
            final = self.path(identity, blob.sha256)
            final.parent.mkdir(exist_ok=True, mode=0o700)
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)

    def stored(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every blob of every identity."""
        for path in self._root.glob("*/??/*"):
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue

    def _folder(self, identity: str) -> Path:
        return self._root / identity_key(identity)
