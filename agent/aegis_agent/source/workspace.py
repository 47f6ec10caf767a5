"""
Workspaces: a project laid out for a build, locked while one has it, warm for the next.

    root/<identity>/<key>/lock        held by the build that works here
                          index.json  what was laid out, to tell an untouched file from another
                          scratch/    what one build needed for itself
                          project/    what the build sees as /project, and may write in
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog
from aegis_protocol.failures.source import WorkspaceBusy
from aegis_protocol.ids import new_id
from aegis_protocol.signing import statement
from aegis_protocol.source import SourcePlan

from aegis_agent.disk.quota import Evictable
from aegis_agent.disk.trees import remove_tree, tree_bytes
from aegis_agent.files import write_atomic
from aegis_agent.source.blobs import identity_key
from aegis_agent.source.layout import Index, Owner, SyncReport, lay_out

log = structlog.get_logger()

_LOCK: Final = "lock"
_INDEX: Final = "index.json"
_PROJECT: Final = "project"
_SCRATCH: Final = "scratch"
_BYTES: Final = "bytes"


class Workspace:
    """
    A locked workspace. Close it (or use it as a context) to let the next build in.

    project  the folder that the build sees as /project; hostile after its first build
    warm     whether something was built here before
    """

    def __init__(self, folder: Path, lock_fd: int, blob_path: Callable[[str], Path]) -> None:
        self.folder = folder
        self.project = folder / _PROJECT
        self.warm = (folder / _INDEX).exists()
        self._lock_fd: int | None = lock_fd
        self._blob_path = blob_path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def sync(
        self, plan: SourcePlan, *, keep: frozenset[str] = frozenset(), owner: Owner | None = None
    ) -> SyncReport:
        """
        Make the project folder hold `plan`: changed files are written anew, unchanged ones keep
        their times, what is no longer in the plan goes. Blocks.

        keep   names at the top that a build made and the next one may use, such as `.pio`
        owner  who gets all of it; None: it stays the daemon's own

        Raises UploadIncomplete when a file is not on this agent, or was spoilt there.
        """
        self.project.mkdir(mode=0o755, exist_ok=True)
        index, report = lay_out(
            self.project,
            plan,
            blob_path=self._blob_path,
            before=self._load_index(),
            keep=keep,
            owner=owner,
        )
        write_atomic(self.folder / _INDEX, json.dumps(index).encode(), mode=0o600)
        return report

    def fresh_scratch(self) -> Path:
        """Return an empty folder beside the project, for what one build needs for itself."""
        scratch = self.folder / _SCRATCH
        if scratch.exists():
            remove_tree(scratch)
        scratch.mkdir(mode=0o755)
        return scratch

    def clean(self, names: frozenset[str]) -> None:
        """Remove what earlier builds left at the top under `names`."""
        for name in names:
            if os.path.lexists(self.project / name):
                remove_tree(self.project / name)

    def close(self) -> None:
        """Unlock it, and remember how large it has become."""
        if self._lock_fd is None:
            return
        try:
            size = tree_bytes(self.folder)
            write_atomic(self.folder / _BYTES, str(size).encode(), mode=0o600)
        finally:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _load_index(self) -> Index:
        try:
            index = json.loads((self.folder / _INDEX).read_bytes())
        except (OSError, ValueError):
            return {}
        return index if isinstance(index, dict) else {}


class Workspaces:
    """root: a folder of this agent's own; only the `project` folders are shown to builds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trash = root.with_name("trash")
        if self._trash.exists():
            remove_tree(self._trash)
        self._trash.mkdir(mode=0o700)

    def open(self, identity: str, plan: SourcePlan, blob_path: Callable[[str], Path]) -> Workspace:
        """Return the workspace of `plan`'s project and installation, or raise WorkspaceBusy."""
        folder = self._folder(identity, plan)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = _lock(folder)
        if fd is None:
            raise WorkspaceBusy("another build of this project is running on the agent")
        os.utime(folder / _LOCK)
        return Workspace(folder, fd, blob_path)

    def busy(self, identity: str, plan: SourcePlan) -> bool:
        folder = self._folder(identity, plan)
        if not folder.exists():
            return False
        fd = _lock(folder)
        if fd is None:
            return True
        os.close(fd)
        return False

    def stored(self) -> list[Evictable]:
        """Every workspace with the size that it had when it was closed last."""
        found = []
        for folder in self._root.glob("*/*"):
            try:
                used_at = (folder / _LOCK).stat().st_mtime
                size = int((folder / _BYTES).read_text())
            except (OSError, ValueError):
                used_at, size = 0.0, tree_bytes(folder)
            found.append(Evictable(used_at, size, partial(self._remove, folder)))
        return found

    def _remove(self, folder: Path) -> bool:
        fd = _lock(folder)
        if fd is None:
            return False
        try:
            # Renamed first: who comes now makes a new one and never meets half of this.
            gone = self._trash / new_id()
            folder.rename(gone)
            remove_tree(gone)
        finally:
            os.close(fd)
        log.info("workspace.evicted", folder=folder.name)
        return True

    def _folder(self, identity: str, plan: SourcePlan) -> Path:
        key = sha256(statement(plan.installation_id, plan.project_id)).hexdigest()[:32]
        return self._root / identity_key(identity) / key


def _lock(folder: Path) -> int | None:
    path = folder / _LOCK
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        # It was evicted between opening and locking.
        os.close(fd)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
