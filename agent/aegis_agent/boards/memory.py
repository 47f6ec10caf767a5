"""
What an agent remembers of its boards, across restarts: `boards.json`.

The highest fencing number of each board, and the MAC and chip that were read at each place.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import structlog
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.model import TargetName, Wire
from pydantic import Field, ValidationError

from aegis_agent.files import write_atomic

log = structlog.get_logger()


class Known(Wire):
    """What was read from a board, which may be another's by now; None: never read."""

    mac: str | None = Field(default=None, pattern=r"^([0-9a-f]{2}:){5,7}[0-9a-f]{2}$")
    chip: TargetName | None = None


class _File(Wire):
    fences: dict[str, int] = Field(default_factory=dict)
    known: dict[str, Known] = Field(default_factory=dict)


class BoardMemory:
    """path: its file; one that makes no sense is put aside as `boards.json.damaged`, and logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _File()
        try:
            self._file = _File.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as exc:
            log.warning("boards.memory_damaged", path=str(path), detail=str(exc)[:500])
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))

    def fence(self, board_id: str) -> int:
        """The highest fencing number under which `board_id` was ever held; 0: never."""
        return self._file.fences.get(board_id, 0)

    def raise_fence(self, board_id: str, fence: int) -> None:
        """Keep `fence`, on disk before this returns. Raises DiskFull."""
        if not self.has_seen(board_id) or fence > self.fence(board_id):
            self._save(_File(fences={**self._file.fences, board_id: fence}, known=self._file.known))

    def has_seen(self, board_id: str) -> bool:
        """Tell whether `board_id` was ever held here."""
        return board_id in self._file.fences

    def known(self, place: str) -> Known:
        return self._file.known.get(place, Known())

    def learn(self, place: str, known: Known) -> None:
        """The board at `place` (an id of the list, or a USB key) is `known`. Never raises."""
        if self.known(place) == known:
            return
        # A board is in one place: where its MAC was read before, there is now another, or none.
        others = {key: was for key, was in self._file.known.items() if was.mac != known.mac}
        try:
            self._save(_File(fences=self._file.fences, known={**others, place: known}))
        except DiskFull as exc:
            log.warning("boards.memory_not_saved", detail=exc.message)

    def _save(self, file: _File) -> None:
        try:
            write_atomic(self._path, file.model_dump_json(indent=2).encode(), mode=0o600)
        except OSError as exc:
            raise DiskFull(f"{self._path} can't be written: {exc.strerror}") from exc
        self._file = file
