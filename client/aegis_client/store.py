"""
The client's folder: small JSON files, one per fact, each 0600 and written whole or not at all.

    installation.json        the id of this installation
    account.json             which control is the current one
    accounts/HASH.json       the key for one control
    known_agents/HASH.json   one pinned agent
    tasks/TASK.json          one build or flash that this client started
    projects/HASH.json       the id of a project whose own folder can't be written

One file per fact needs no lock: two programs at once never overwrite each other's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from aegis_protocol.ids import new_id
from aegis_protocol.model import Id
from pydantic import BaseModel, ConfigDict, ValidationError

from aegis_client.config import ClientConfig
from aegis_client.failures import StoreDamaged, StoreNotFound


class Kept(BaseModel):
    """What a file of the store holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Installation(Kept):
    id: Id


K = TypeVar("K", bound=Kept)


class Store:
    """The folder at `root`, which exists and is ours to write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, config: ClientConfig) -> Store:
        """Open the store, made if need be. Raises StoreNotFound."""
        root = config.store
        try:
            root.mkdir(mode=0o700, parents=not config.store_named, exist_ok=True)
        except OSError as exc:
            raise _not_found(root, exc) from exc
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreNotFound(f"cannot find store at {root}: it can't be written", path=str(root))
        return cls(root)

    def installation_id(self) -> str:
        """A random id, made once: two laptops never share a workspace on an agent."""
        mine = Installation(id=new_id())
        if self.create("installation.json", mine):
            return mine.id
        return (self.read("installation.json", Installation) or mine).id

    def read(self, name: str, model: type[K]) -> K | None:
        """Return what `name` holds, None where there is no such file. Raises StoreDamaged."""
        path = self.root / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _not_found(self.root, exc) from exc
        try:
            return model.model_validate_json(data)
        except ValidationError as exc:
            raise StoreDamaged(f"{path} does not hold what it should", path=str(path)) from exc

    def write(self, name: str, kept: Kept) -> None:
        """Put `kept` at `name`, in the place of what was there."""
        with self._written(name, kept) as (temporary, path):
            temporary.replace(path)

    def create(self, name: str, kept: Kept) -> bool:
        """Put `kept` at `name` unless there is something; tell whether it was put."""
        with self._written(name, kept) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                # No hard links on this file system: the second best is all but atomic.
                return _create_exclusively(path, temporary.read_bytes())
        return True

    def remove(self, name: str) -> bool:
        """Delete `name`; tell whether it was there."""
        try:
            (self.root / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """The names `folder/…json` there are, sorted."""
        try:
            found = [entry.name for entry in (self.root / folder).iterdir()]
        except FileNotFoundError:
            return []
        return [f"{folder}/{n}" for n in sorted(found) if n.endswith(".json") and n[0] != "."]

    def _written(self, name: str, kept: Kept) -> _Written:
        return _Written(self.root, name, kept.model_dump_json(indent=2).encode() + b"\n")


class _Written:
    """A complete temporary file next to where it will stand; removed when the block is left."""

    def __init__(self, root: Path, name: str, data: bytes) -> None:
        self._root, self._path, self._data = root, root / name, data
        self._temporary: Path | None = None

    def __enter__(self) -> tuple[Path, Path]:
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            # mkstemp makes the file 0600: there is no moment at which others could read it.
            fd, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            self._temporary = Path(name)
            with os.fdopen(fd, "wb") as file:
                file.write(self._data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise _not_found(self._root, exc) from exc
        return self._temporary, self._path

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def hashed(*parts: str) -> str:
    """A file name for something that may hold any character."""
    return sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def each(store: Store, folder: str, model: type[K]) -> Iterator[tuple[str, K]]:
    """Every file of `folder` with its name; one that vanishes meanwhile is left out."""
    for name in store.names(folder):
        kept = store.read(name, model)
        if kept is not None:
            yield name, kept


def _create_exclusively(path: Path, data: bytes) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    return True


def _not_found(root: Path, exc: OSError) -> StoreNotFound:
    return StoreNotFound(f"cannot find store at {root}: {exc.strerror or exc}", path=str(root))
