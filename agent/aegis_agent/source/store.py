"""
What of a project is here and what is not; its upload; the workspace to build it in.

    root/blobs/       every file that has arrived, by digest
    root/workspaces/  the projects laid out, one folder per identity, installation and project
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final
from weakref import WeakSet

from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.failures.source import PathUnsafe, SourceTooLarge, UploadIncomplete
from aegis_protocol.ids import new_id
from aegis_protocol.source import (
    MAX_FILE_BYTES,
    MAX_SOURCE_BYTES,
    SourcePlan,
    check_plan,
)

from aegis_agent.disk.quota import Evictable, evict
from aegis_agent.disk.trees import remove_tree
from aegis_agent.source.blobs import Blobs
from aegis_agent.source.pack import PackReader
from aegis_agent.source.planned import PlannedSource
from aegis_agent.source.workspace import Workspace, Workspaces

MAX_FOLDERS_DEEP: Final = 64
OUTLINE_FILE_BYTES: Final = 1 << 20
_CODE: Final = frozenset(
    {".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".ino", ".s", ".py", ".md", ".png", ".bin"}
)
_RETRY_LOCK_S: Final = 0.05


class SourceStore:
    """
    root         a folder of this agent's own
    quota_bytes  for blobs and workspaces together; the least recently used go first
    """

    def __init__(self, root: Path, *, quota_bytes: int) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._blobs = Blobs(root / "blobs")
        self._workspaces = Workspaces(root / "workspaces")
        self._scratch = root / "scratch"
        if self._scratch.exists():
            remove_tree(self._scratch)
        self._scratch.mkdir(mode=0o700)
        self._quota_bytes = quota_bytes
        self._pinned: WeakSet[PlannedSource] = WeakSet()
        self._making_room = threading.Lock()

    async def plan(self, identity: str, plan: SourcePlan) -> PlannedSource:
        """
        Return what of `plan` this agent lacks.

        Raises PathUnsafe, SymlinkUnsafe, SourceTooLarge, or BadRequest for a digest of two sizes.
        """
        return await asyncio.to_thread(self._plan, identity, plan)

    async def push(
        self, identity: str, planned: PlannedSource, pack: Path, compression: str
    ) -> PlannedSource:
        """
        Keep the missing blobs of `planned`, which `pack` holds in the plan's order.

        Returns the plan with nothing missing. Raises UploadIncomplete when the pack is not what
        was announced (each file that did arrive is kept), DiskFull.
        """
        return await asyncio.to_thread(self._push, identity, planned, pack, compression)

    def outline(self, identity: str, planned: PlannedSource, into: Path) -> None:
        """
        Show the project's files below `into`, an empty folder on the store's file system, but for
        large ones and code: for a look that runs nothing. They are the blobs themselves: only to
        be read.
        """
        for file in planned.plan.files:
            suffix = PurePosixPath(file.path).suffix.lower()
            if file.size_bytes <= OUTLINE_FILE_BYTES and suffix not in _CODE:
                path = into / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    path.hardlink_to(self._blobs.path(identity, file.sha256))
                except FileNotFoundError as exc:
                    raise UploadIncomplete(f"{file.path} is not on this agent") from exc
        for link in planned.plan.links:
            path = into / link.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(link.target)

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder on the store's file system that goes with its context."""
        return tempfile.TemporaryDirectory(dir=self._scratch)

    def busy(self, identity: str, plan: SourcePlan) -> bool:
        """Tell whether a build has the project's workspace right now."""
        return self._workspaces.busy(identity, plan)

    async def workspace(
        self, identity: str, planned: PlannedSource, *, wait_s: float = 0
    ) -> Workspace:
        """
        Return the project's workspace, locked until it is closed.

        Raises WorkspaceBusy when another build has it after `wait_s`, DiskFull.
        """
        deadline = time.monotonic() + wait_s
        # Whoever holds it may be another process: there is no event to wait for.
        while self.busy(identity, planned.plan) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_LOCK_S)
        opened: list[Workspace] = []
        opening = asyncio.to_thread(lambda: opened.append(self._workspace(identity, planned)))
        try:
            await uninterrupted(opening)
        except asyncio.CancelledError:
            for workspace in opened:  # nobody would: it would stay locked for ever
                workspace.close()
            raise
        return opened[0]

    def tidy(self) -> None:
        """Bring what is stored back into the quota. Blocks. DiskFull when too much is in use."""
        self._make_room(0)

    def _plan(self, identity: str, plan: SourcePlan) -> PlannedSource:
        check_plan(plan)
        _check_sizes(plan)
        # Pinned before it is looked at: what is found to be here stays here.
        unseen = self._pin(PlannedSource(plan_id=new_id(), plan=plan, missing=()))
        missing = tuple(not self._blobs.has(identity, blob) for blob in unseen.blobs)
        return self._pin(PlannedSource(plan_id=unseen.plan_id, plan=plan, missing=missing))

    def _push(
        self, identity: str, planned: PlannedSource, pack: Path, compression: str
    ) -> PlannedSource:
        self._make_room(planned.missing_bytes)
        with PackReader(pack, compression) as reader:
            for blob in planned.missing_blobs:
                self._blobs.put(identity, blob, reader.take(blob.size_bytes))
            reader.expect_end()
        whole = (False,) * len(planned.missing)
        return self._pin(PlannedSource(plan_id=planned.plan_id, plan=planned.plan, missing=whole))

    def _pin(self, planned: PlannedSource) -> PlannedSource:
        with self._making_room:
            self._pinned.add(planned)
        return planned

    def _workspace(self, identity: str, planned: PlannedSource) -> Workspace:
        workspace = self._workspaces.open(
            identity, planned.plan, lambda digest: self._blobs.path(identity, digest)
        )
        try:
            if not workspace.warm:
                self._make_room(sum(file.size_bytes for file in planned.plan.files))
        except BaseException:
            workspace.close()
            raise
        return workspace

    def _make_room(self, needed_bytes: int) -> None:
        with self._making_room:
            pinned = {blob.sha256 for plan in self._pinned for blob in plan.blobs}
            blobs = list(self._blobs.stored())
            workspaces = self._workspaces.stored()
            used = sum(found.st_blocks * 512 for _, found in blobs)
            used += sum(entry.size_bytes for entry in workspaces)
            evictable = workspaces + [
                Evictable(found.st_mtime, found.st_blocks * 512, _removal(path))
                for path, found in blobs
                if path.name not in pinned
            ]
            evict(evictable, used_bytes=used, needed_bytes=needed_bytes, quota=self._quota_bytes)


def _removal(path: Path) -> Callable[[], bool]:
    def remove() -> bool:
        path.unlink(missing_ok=True)
        return True

    return remove


def _check_sizes(plan: SourcePlan) -> None:
    sizes: dict[str, int] = {}
    total = 0
    for file in plan.files:
        if file.size_bytes > MAX_FILE_BYTES:
            raise SourceTooLarge(
                f"{file.path} is larger than {MAX_FILE_BYTES} bytes", path=file.path
            )
        if sizes.setdefault(file.sha256, file.size_bytes) != file.size_bytes:
            raise BadRequest(f"{file.path}: the plan gives one digest two sizes")
        total += file.size_bytes
    if total > MAX_SOURCE_BYTES:
        raise SourceTooLarge(f"the project is larger than {MAX_SOURCE_BYTES} bytes")
    for path in [file.path for file in plan.files] + [link.path for link in plan.links]:
        if path.count("/") > MAX_FOLDERS_DEEP:
            raise PathUnsafe(f"{path[:200]} lies deeper than {MAX_FOLDERS_DEEP} folders")
