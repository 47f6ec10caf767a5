"""
Control's state directory: ours alone (0700), and held by one process at a time.

    control.db      the store, unless AEGIS_DATABASE_URL names another
    issuer.pem      the key that signs grants
    pepper          the key under which API keys are hashed
    operator.key    the first operator's API key
    control.sock    the local operators' socket
    control.lock    held while `serve` runs
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aegis_protocol.errors import AegisError


class StateUnusable(AegisError):
    code = "control.state_unusable"
    remedy = "Give control a folder that its user owns: set AEGIS_STATE_DIR."


class StateBusy(AegisError):
    code = "control.state_dir_busy"
    remedy = "Run one control per state directory: stop the other, or set AEGIS_STATE_DIR."


class StateDir:
    """The paths inside, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.issuer_key = path / "issuer.pem"
        self.pepper = path / "pepper"
        self.operator_key = path / "operator.key"
        self.socket = path / "control.sock"
        self._lock = path / "control.lock"

    def make(self) -> None:
        """Make the folder, closed to others. StateUnusable when that can't be done."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as exc:
            raise StateUnusable(
                f"{self.path} can't be used: {exc.strerror}", path=str(self.path)
            ) from exc

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process. StateBusy when another control has it."""
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StateUnusable(f"{self._lock} can't be made: {exc.strerror}") from exc
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise StateBusy(f"another aegis-control runs with {self.path}") from exc
            yield
        finally:
            os.close(fd)
