"""The agent's state directory: ours alone, and held by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aegis_protocol.errors import AegisError


class StateUnusable(AegisError):
    code = "agent.state_unusable"
    remedy = "Give the agent a folder that its user may write to: set AEGIS_STATE_DIR."


class StateDirBusy(AegisError):
    code = "agent.state_dir_busy"
    remedy = "Run one agent per state directory: stop the other, or set AEGIS_STATE_DIR."


def prepare(state_dir: Path) -> None:
    """Make the folder, closed to others if it is new. StateUnusable when it can't be used."""
    with usable(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "this user may not write to it")


@contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """Hold the folder for this process. StateDirBusy when another agent has it."""
    with usable(state_dir):
        fd = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StateDirBusy(f"another aegis-agent runs with {state_dir}") from exc
        yield
    finally:
        os.close(fd)


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Translate what the system says about `path` and what is below it."""
    try:
        yield
    except OSError as exc:
        raise StateUnusable(f"{path} can't be used: {exc.strerror}", path=str(path)) from exc
