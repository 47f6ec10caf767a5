"""
The results of builds: complete or not there at all, and only for the identity that built them.

    root/<identity>/<task_id>/files/<artifact>
                              result.json       every artifact with size and digest
    root/drafts/              what is being collected
"""

from __future__ import annotations

import os
import re
import threading
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog
from aegis_protocol.failures.build import ArtifactMissing, TaskNotFound
from aegis_protocol.ids import new_id
from aegis_protocol.manifest import Artifact, Manifest
from aegis_protocol.model import Wire
from pydantic import ValidationError

from aegis_agent.disk.quota import Evictable, evict
from aegis_agent.disk.trees import remove_tree, tree_bytes
from aegis_agent.files import write_atomic

log = structlog.get_logger()

_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:@-]{0,79}")
_ARTIFACT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_INDEX: Final = "result.json"


class ResultIndex(Wire):
    """What `result.json` holds."""

    artifacts: tuple[Artifact, ...]


class ResultDraft:
    """
    A result that is being collected: put files into `folder`, name them, then commit.

    Leaving the context without a commit removes all of it.
    """

    def __init__(self, store: ResultStore, identity: str, task_id: str, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._identity = identity
        self._task_id = task_id
        self._artifacts: dict[str, Artifact] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self.folder.parent.exists():
            remove_tree(self.folder.parent)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(sorted(self._artifacts.values(), key=lambda artifact: artifact.name))

    def path(self, name: str) -> Path:
        """Where the file `name` is to be written; ValueError for a name that is none."""
        if not _ARTIFACT_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact's name")
        return self.folder / name

    def write(self, name: str, kind: str, data: bytes) -> Artifact:
        self.path(name).write_bytes(data)
        return self.add(name, kind)

    def add(self, name: str, kind: str) -> Artifact:
        """Take the file that was written at `path(name)` into the result."""
        with self.path(name).open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        artifact = Artifact.model_validate(
            {"name": name, "kind": kind, "size_bytes": size, "sha256": digest}
        )
        self._artifacts[name] = artifact
        return artifact

    def drop_all(self) -> None:
        """Forget every artifact so far, and what was being written."""
        self._artifacts.clear()
        for entry in list(self.folder.iterdir()):
            entry.unlink()

    def commit(self) -> tuple[Artifact, ...]:
        """Make it the task's result. Raises DiskFull."""
        self._store._commit(self._identity, self._task_id, self.folder.parent, self.artifacts)
        return self.artifacts


class ResultStore:
    """
    root         a folder of this agent's own, which no build can enter
    quota_bytes  for all results; those used least recently go first
    """

    def __init__(self, root: Path, *, quota_bytes: int) -> None:
        self._root = root
        self._quota_bytes = quota_bytes
        self._drafts = root / "drafts"
        self._making_room = threading.Lock()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._drafts.exists():
            remove_tree(self._drafts)
        self._drafts.mkdir(mode=0o700)

    def draft(self, identity: str, task_id: str) -> ResultDraft:
        """Begin the result of `task_id`."""
        if not _TASK_ID.fullmatch(task_id):
            raise ValueError(f"{task_id!r} is no task's id")
        folder = self._drafts / new_id() / "files"
        folder.mkdir(parents=True, mode=0o700)
        return ResultDraft(self, identity, task_id, folder)

    def artifacts(self, identity: str, task_id: str) -> tuple[Artifact, ...]:
        """All that `task_id` left. Raises TaskNotFound, also for another identity's task."""
        folder = self._folder(identity, task_id)
        if folder is None:
            raise _not_found(task_id)
        try:
            index = ResultIndex.model_validate_json((folder / _INDEX).read_bytes())
            os.utime(folder)
        except (FileNotFoundError, ValidationError) as exc:
            raise _not_found(task_id) from exc
        return index.artifacts

    def path(self, identity: str, task_id: str, name: str) -> tuple[Path, Artifact]:
        """Where artifact `name` lies. Raises TaskNotFound, ArtifactMissing."""
        for artifact in self.artifacts(identity, task_id):
            if artifact.name == name:
                folder = self._folder(identity, task_id)
                assert folder is not None
                return folder / "files" / name, artifact
        raise ArtifactMissing(f"this build has no artifact of that name: {name[:80]}")

    def manifest(self, identity: str, task_id: str) -> Manifest:
        """The manifest of a build that succeeded. Raises TaskNotFound, ArtifactMissing."""
        path, _ = self.path(identity, task_id, "manifest.json")
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError as exc:
            raise _not_found(task_id) from exc

    def _commit(
        self, identity: str, task_id: str, draft: Path, artifacts: tuple[Artifact, ...]
    ) -> None:
        index = ResultIndex(artifacts=artifacts)
        write_atomic(draft / _INDEX, index.model_dump_json().encode(), mode=0o600)
        self._make_room(tree_bytes(draft))
        final = self._folder(identity, task_id)
        assert final is not None
        final.parent.mkdir(exist_ok=True, mode=0o700)
        draft.rename(final)
        log.info("result.kept", task_id=task_id, artifacts=len(artifacts))

    def _make_room(self, needed_bytes: int) -> None:
        with self._making_room:
            entries = []
            for folder in self._root.glob("*/*"):
                if folder.parent == self._drafts:
                    continue
                try:
                    used_at = folder.stat().st_mtime
                except FileNotFoundError:
                    continue
                entries.append(Evictable(used_at, tree_bytes(folder), partial(_remove, folder)))
            used = sum(entry.size_bytes for entry in entries)
            evict(entries, used_bytes=used, needed_bytes=needed_bytes, quota=self._quota_bytes)

    def _folder(self, identity: str, task_id: str) -> Path | None:
        if not _TASK_ID.fullmatch(task_id):
            return None
        return self._root / sha256(identity.encode()).hexdigest()[:32] / task_id


def _remove(folder: Path) -> bool:
    remove_tree(folder)
    return True


def _not_found(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"there is no result of task {task_id[:80]}")
