"""
A project on this machine: its id, its files as a plan, and the way back from blobs to files.

Ordinary files and links that stay inside are taken; links that lead out and names that can't be
sent are refused by name; sockets, pipes and devices are passed over, as git does.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegis_protocol.failures.source import (
    SourceChanged,
    SourceNotFound,
    SourceTooLarge,
    SymlinkUnsafe,
)
from aegis_protocol.ids import new_id
from aegis_protocol.model import Id
from aegis_protocol.source import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_SOURCE_BYTES,
    SourceFile,
    SourceLink,
    SourcePlan,
    check_plan,
    checked_link,
    checked_path,
)
from pydantic import ValidationError

from aegis_client.failures import SourceUnreadable
from aegis_client.ignore import IgnoreRules
from aegis_client.store import Kept, Store, hashed

NOTES: Final = ".aegis"
_PIECE_BYTES: Final = 1 << 20


class ProjectNotes(Kept):
    """`.aegis/project.json`."""

    id: Id


@dataclass(frozen=True)
class Project:
    """A scanned project. root: absolute, links resolved."""

    root: Path
    plan: SourcePlan

    @property
    def id(self) -> str:
        return self.plan.project_id

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.plan.files)

    def read(self, file: SourceFile) -> Iterator[bytes]:
        """
        The bytes of `file`, in pieces.

        Raises SourceChanged at the end when they are not what the plan says, SourceUnreadable.
        """
        digest, size = sha256(), 0
        for piece in _pieces(self.root / file.path, file.path):
            digest.update(piece)
            size += len(piece)
            if size > file.size_bytes:
                break
            yield piece
        if size != file.size_bytes or digest.hexdigest() != file.sha256:
            raise SourceChanged(f"{file.path} changed while it was sent", path=file.path)


def project_root(folder: Path) -> Path:
    """Return the absolute path of a project's folder. Raises SourceNotFound."""
    try:
        root = folder.expanduser().resolve(strict=True)
    except OSError as exc:
        raise SourceNotFound(f"there is no folder {folder}") from exc
    if not root.is_dir():
        raise SourceNotFound(f"{folder} is not a folder")
    return root


def scan(
    root: Path, store: Store, on_progress: Callable[[int, int], None] | None = None
) -> Project:
    """
    Read the project at `root` (of `project_root`); blocking.

    on_progress  called with files and bytes read so far

    Raises PathUnsafe, SymlinkUnsafe, SourceTooLarge, SourceUnreadable.
    """
    files: list[SourceFile] = []
    links: list[SourceLink] = []
    total = 0
    for path, info in _walk(root, "", IgnoreRules.around(root)):
        if stat.S_ISLNK(info.st_mode):
            links.append(_link(root, path))
        else:
            file = _file(root, path, info)
            files.append(file)
            total += file.size_bytes
        if len(files) + len(links) > MAX_FILES:
            raise SourceTooLarge(f"the project has more than {MAX_FILES} files")
        if total > MAX_SOURCE_BYTES:
            raise SourceTooLarge(f"the project is larger than {MAX_SOURCE_BYTES >> 20} MiB")
        if on_progress is not None:
            on_progress(len(files), total)
    plan = SourcePlan(
        project_id=project_id(root, store),
        installation_id=store.installation_id(),
        files=tuple(sorted(files, key=lambda file: file.path)),
        links=tuple(sorted(links, key=lambda link: link.path)),
    )
    check_plan(plan)
    return Project(root, plan)


def project_id(root: Path, store: Store) -> str:
    """
    Return the project's random id: from `.aegis/project.json`, made where it is not there. Where
    the project can't be written, the store keeps an id for its path.
    """
    notes = root / NOTES / "project.json"
    try:
        return ProjectNotes.model_validate_json(notes.read_bytes()).id
    except (OSError, ValidationError):
        pass
    fresh = ProjectNotes(id=new_id())
    try:
        notes.parent.mkdir(exist_ok=True)
        # Git shall not offer to commit it: a clone is another project.
        (notes.parent / ".gitignore").write_text("*\n")
        temporary = notes.with_name(f".project.{os.getpid()}.json")
        temporary.write_text(json.dumps(fresh.model_dump(), indent=2) + "\n")
        temporary.replace(notes)
    except OSError:
        name = f"projects/{hashed(str(root))}.json"
        if not store.create(name, fresh):
            fresh = store.read(name, ProjectNotes) or fresh
    return fresh.id


def _walk(folder: Path, prefix: str, above: IgnoreRules) -> Iterator[tuple[str, os.stat_result]]:
    """Every file and link that is to be sent: its path in the project, and its lstat."""
    rules = above.within(folder, prefix)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as exc:
        raise SourceUnreadable(f"{prefix or '.'}: {exc.strerror}", path=_shown(prefix)) from exc
    for entry in entries:
        path = prefix + entry.name
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise SourceUnreadable(f"{_shown(path)}: {exc.strerror}") from exc
        is_folder = stat.S_ISDIR(info.st_mode)
        if rules.ignored(path, folder=is_folder):
            continue
        if is_folder:
            checked_path(path)
            yield from _walk(folder / entry.name, f"{path}/", rules)
        elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            checked_path(path)
            yield path, info


def _file(root: Path, path: str, info: os.stat_result) -> SourceFile:
    if info.st_size > MAX_FILE_BYTES:
        raise SourceTooLarge(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", path=path)
    digest, size = sha256(), 0
    for piece in _pieces(root / path, path):
        digest.update(piece)
        size += len(piece)
        if size > MAX_FILE_BYTES:
            raise SourceTooLarge(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", path=path)
    return SourceFile(
        path=path,
        size_bytes=size,
        sha256=digest.hexdigest(),
        executable=bool(info.st_mode & stat.S_IXUSR),
    )


def _link(root: Path, path: str) -> SourceLink:
    try:
        target = (root / path).readlink().as_posix()
    except OSError as exc:
        raise SourceUnreadable(f"{path}: {exc.strerror}", path=path) from exc
    checked_link(path, target)
    # What reads as inside may lead out through another link on its way.
    if not Path(os.path.realpath(root / path)).is_relative_to(root):
        raise SymlinkUnsafe(f"{path} points out of the project", path=path)
    return SourceLink(path=path, target=target)


def _pieces(file: Path, path: str) -> Iterator[bytes]:
    try:
        # O_NOFOLLOW: what was a file a moment ago may be a link by now.
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb", buffering=0) as opened:
            while piece := opened.read(_PIECE_BYTES):
                yield piece
    except OSError as exc:
        raise SourceUnreadable(f"{path}: {exc.strerror}", path=path) from exc


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
