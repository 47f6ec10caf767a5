"""
Lays a plan out in a folder where a hostile build has been.

Everything is opened from a descriptor of its parent and no link is followed, so that a link that
the last build planted leads nowhere. A file that is written is a new one under a temporary name:
what the old name was linked to stays as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Final

from aegis_protocol.failures.source import UploadIncomplete
from aegis_protocol.source import SourceFile, SourceLink, SourcePlan

from aegis_agent.disk.trees import hand_over, is_folder, opened_folder, own_entry, remove_entry

Index = dict[str, list[int | str]]
"""Path to digest and what `stat` said of the file when it was laid out."""

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): share the blocks until one side writes (Btrfs, XFS, bcachefs)."""
_PART: Final = ".aegis-part-"


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int


@dataclass
class SyncReport:
    """How many files were written, removed and found unchanged."""

    written: int = 0
    removed: int = 0
    unchanged: int = 0


@dataclass
class _Folder:
    leaves: dict[str, SourceFile | SourceLink] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)


def lay_out(
    project: Path,
    plan: SourcePlan,
    *,
    blob_path: Callable[[str], Path],
    before: Index,
    keep: frozenset[str],
    owner: Owner | None,
) -> tuple[Index, SyncReport]:
    """Make `project` hold `plan`; return the index for the next time. See `Workspace.sync`."""
    work = _LayOut(blob_path, before, owner)
    with opened_folder(project) as fd:
        work.folder(fd, _tree(plan), prefix="", keep=keep)
        if owner is not None:
            os.fchown(fd, owner.uid, owner.gid)
    return work.index, work.report


class _LayOut:
    def __init__(
        self, blob_path: Callable[[str], Path], before: Index, owner: Owner | None
    ) -> None:
        self.index: Index = {}
        self.report = SyncReport()
        self._blob_path = blob_path
        self._before = before
        self._owner = owner

    def folder(self, fd: int, wanted: _Folder, *, prefix: str, keep: frozenset[str] | None) -> None:
        """keep: names to leave as they are; None: all of them."""
        for name in [entry.name for entry in os.scandir(fd)]:
            if name in wanted.leaves or name in wanted.folders:
                continue
            if keep is None or name in keep:
                self._hand_over(fd, name)
            else:
                remove_entry(name, fd)
                self.report.removed += 1
        for name, leaf in wanted.leaves.items():
            if isinstance(leaf, SourceLink):
                self._link(fd, name, leaf)
            else:
                self._file(fd, name, leaf)
        for name, below in wanted.folders.items():
            if not is_folder(name, fd):
                remove_entry(name, fd)
                os.mkdir(name, 0o755, dir_fd=fd)
            with opened_folder(name, dir_fd=fd) as child:
                kept = keep is None or name in keep
                self.folder(
                    child,
                    below,
                    prefix=f"{prefix}{name}/",
                    keep=None if kept else frozenset(),
                )
            if self._owner is not None:
                own_entry(name, fd, self._owner.uid, self._owner.gid)

    def _file(self, fd: int, name: str, file: SourceFile) -> None:
        mode = 0o755 if file.executable else 0o644
        if self._unchanged(fd, name, file):
            self.report.unchanged += 1
            found = os.lstat(name, dir_fd=fd)
            if stat.S_IMODE(found.st_mode) != mode:
                os.chmod(name, mode, dir_fd=fd)
        else:
            self._write(fd, name, file, mode)
            self.report.written += 1
        if self._owner is not None:
            own_entry(name, fd, self._owner.uid, self._owner.gid)
        self.index[file.path] = [file.sha256, *_identity(os.lstat(name, dir_fd=fd))]

    def _unchanged(self, fd: int, name: str, file: SourceFile) -> bool:
        try:
            found = os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            return False
        # A build can set every time but ctime (inode(7)), so this can't be forged.
        if self._before.get(file.path) == [file.sha256, *_identity(found)]:
            return True
        return found.st_nlink == 1 and _digest(fd, name) == file.sha256

    def _write(self, fd: int, name: str, file: SourceFile, mode: int) -> None:
        part = f"{_PART}{os.urandom(8).hex()}"
        try:
            blob = os.open(self._blob_path(file.sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise UploadIncomplete(f"{file.path} is not on this agent any more") from exc
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            copy = os.open(part, flags, 0o600, dir_fd=fd)
            try:
                _copy(blob, copy)
                os.lseek(copy, 0, os.SEEK_SET)
                with open(copy, "rb", closefd=False) as written:
                    digest = file_digest(written, "sha256").hexdigest()
                if digest != file.sha256:
                    self._blob_path(file.sha256).unlink(missing_ok=True)
                    raise UploadIncomplete(f"{file.path} was spoilt on this agent's disk")
                os.fchmod(copy, mode)
            finally:
                os.close(copy)
            if is_folder(name, fd):
                remove_entry(name, fd)
            os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            remove_entry(part, fd)
            raise
        finally:
            os.close(blob)

    def _link(self, fd: int, name: str, link: SourceLink) -> None:
        try:
            same = os.readlink(name, dir_fd=fd) == link.target
        except OSError:
            same = False
        if same:
            self.report.unchanged += 1
        else:
            remove_entry(name, fd)
            os.symlink(link.target, name, dir_fd=fd)
            self.report.written += 1
        if self._owner is not None:
            own_entry(name, fd, self._owner.uid, self._owner.gid)

    def _hand_over(self, fd: int, name: str) -> None:
        if self._owner is None:
            return
        if is_folder(name, fd):
            with opened_folder(name, dir_fd=fd) as child:
                hand_over(child, self._owner.uid, self._owner.gid)
        else:
            own_entry(name, fd, self._owner.uid, self._owner.gid)


def _tree(plan: SourcePlan) -> _Folder:
    root = _Folder()
    leaves: list[SourceFile | SourceLink] = [*plan.files, *plan.links]
    for leaf in leaves:
        *parents, name = leaf.path.split("/")
        at = root
        for parent in parents:
            at = at.folders.setdefault(parent, _Folder())
        at.leaves[name] = leaf
    return root


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _digest(dir_fd: int, name: str) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _copy(source: int, to: int) -> None:
    try:
        fcntl.ioctl(to, _FICLONE, source)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            raise
        offset = 0
        while sent := os.sendfile(to, source, offset, 1 << 24):
            offset += sent
