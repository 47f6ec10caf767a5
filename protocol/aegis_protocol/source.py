"""
A project's source as a plan: paths, sizes, modes and digests, and the rules for paths.

The same rules are applied by the client, which reads the files, and by the agent, which trusts
no client: a path is relative, UTF-8, made of ordinary parts, and stays inside the project.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, Literal

from pydantic import Field

from aegis_protocol.failures.source import PathUnsafe, SymlinkUnsafe
from aegis_protocol.model import Id, Sha256Hex, SizeBytes, Wire

MAX_FILES: Final = 50_000
MAX_PATH_BYTES: Final = 1024
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_SOURCE_BYTES: Final = 2 * 1024 * 1024 * 1024
MAX_PLAN_BYTES: Final = 32 * 1024 * 1024


class SourceFile(Wire):
    """A regular file; `executable` is all that is kept of its mode."""

    kind: Literal["file"] = "file"
    path: str = Field(max_length=MAX_PATH_BYTES)
    size_bytes: SizeBytes
    sha256: Sha256Hex
    executable: bool = False


class SourceLink(Wire):
    """A symbolic link that stays inside the project."""

    kind: Literal["link"] = "link"
    path: str = Field(max_length=MAX_PATH_BYTES)
    target: str = Field(max_length=MAX_PATH_BYTES)


class SourcePlan(Wire):
    """
    All of a project, sorted by path. It travels as a transfer, being larger than a message.

    project_id       random, kept in the project (`.aegis/project.json`)
    installation_id  of the client: two laptops with one project don't share a workspace
    """

    project_id: Id
    installation_id: Id
    files: tuple[SourceFile, ...] = Field(max_length=MAX_FILES)
    links: tuple[SourceLink, ...] = Field(default=(), max_length=MAX_FILES)


def checked_path(path: str) -> str:
    """Return `path` if it is a safe relative path, or raise `PathUnsafe` with the reason."""
    reason = _fault(path)
    if reason:
        raise PathUnsafe(f"{_shown(path)}: {reason}", path=_shown(path))
    return path


def checked_link(path: str, target: str) -> str:
    """Return `target` if a link at `path` to it stays inside, or raise `SymlinkUnsafe`."""
    checked_path(path)
    parts = path.split("/")[:-1]
    fault = _text_fault(target)
    if fault or target.startswith("/"):
        raise SymlinkUnsafe(f"{_shown(path)} points out of the project", path=_shown(path))
    for part in target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise SymlinkUnsafe(f"{_shown(path)} points out of the project", path=_shown(path))
    return target


def check_plan(plan: SourcePlan) -> None:
    """
    Raise `PathUnsafe`, `SymlinkUnsafe` when a path of `plan` could leave the project, is named
    twice, or lies below a file or a link (which would follow it).
    """
    leaves: set[str] = set()
    paths = [file.path for file in plan.files] + [link.path for link in plan.links]
    for path in paths:
        checked_path(path)
        if path in leaves:
            raise PathUnsafe(f"{_shown(path)} is named twice", path=_shown(path))
        leaves.add(path)
    links = {link.path for link in plan.links}
    for link in plan.links:
        checked_link(link.path, link.target)
        _check_way_back(link, links)
    for path in leaves:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in leaves:
                raise PathUnsafe(
                    f"{_shown(path)} lies below something that is no folder", path=_shown(path)
                )


def plan_digest(plan: SourcePlan) -> str:
    """Return the digest of what is in `plan` (ids left out), as manifests carry it."""
    digest = sha256()
    for file in sorted(plan.files, key=lambda f: f.path):
        digest.update(f"f\0{file.path}\0{int(file.executable)}\0{file.sha256}\n".encode())
    for link in sorted(plan.links, key=lambda entry: entry.path):
        digest.update(f"l\0{link.path}\0{link.target}\n".encode())
    return digest.hexdigest()


def unique_blobs(files: Iterable[SourceFile]) -> list[SourceFile]:
    """The first file of each digest, in the plan's order: bit n of a `missing` map is entry n."""
    seen: dict[str, SourceFile] = {}
    for file in files:
        seen.setdefault(file.sha256, file)
    return list(seen.values())


def pack_bitmap(bits: Sequence[bool]) -> bytes:
    """Pack `bits` into bytes, bit n at byte n // 8, least significant bit first."""
    out = bytearray((len(bits) + 7) // 8)
    for n, bit in enumerate(bits):
        if bit:
            out[n // 8] |= 1 << (n % 8)
    return bytes(out)


def unpack_bitmap(data: bytes, count: int) -> list[bool]:
    """The first `count` bits of `data`; ValueError when there are fewer."""
    if len(data) != (count + 7) // 8:
        raise ValueError("bitmap of the wrong length")
    return [bool(data[n // 8] >> (n % 8) & 1) for n in range(count)]


def _check_way_back(link: SourceLink, links: set[str]) -> None:
    """
    Raise `SymlinkUnsafe` when a `..` in the target comes right after another link.

    There it means the parent of what that link points to, which may lie outside: with
    `here -> .`, `here/..` is the folder above the project.
    """
    parts = link.path.split("/")[:-1]
    for part in link.target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
            continue
        if "/".join(parts) in links:
            raise SymlinkUnsafe(
                f"{_shown(link.path)} goes back through another link", path=_shown(link.path)
            )
        parts.pop()


def _fault(path: str) -> str | None:
    fault = _text_fault(path)
    if fault:
        return fault
    if path.startswith("/"):
        return "absolute paths are not allowed"
    for part in path.split("/"):
        if part == "":
            return "an empty part in the path"
        if part in (".", ".."):
            return "the path leaves its folder"
        if len(part.encode()) > 255:
            return "a part of the path is longer than 255 bytes"
    return None


def _text_fault(path: str) -> str | None:
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if not raw:
        return "an empty path"
    if len(raw) > MAX_PATH_BYTES:
        return f"the path is longer than {MAX_PATH_BYTES} bytes"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        return "control characters in the name"
    if "\\" in path:
        return "a backslash in the name"
    return None


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()[:300]
