"""Which firmware is meant: a build that an agent keeps, or a bundle that lies here."""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.source import SourceNotFound
from aegis_protocol.manifest import Manifest
from aegis_protocol.states import TaskState
from pydantic import ValidationError

from aegis_client.artifacts import BUNDLE
from aegis_client.client import Client
from aegis_client.failures import BundleInvalid, NoEarlierBuild
from aegis_client.project import project_root
from aegis_client.records import TaskRecord

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
_MAX_MANIFEST_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Firmware:
    """
    record  of the build, where an agent keeps it; None: only the bundle is there
    bundle  a flash_bundle.tar.gz on this machine, if there is one
    """

    target: str
    elf_sha256: str | None
    record: TaskRecord | None = None
    bundle: Path | None = None


def find_firmware(client: Client, what: Path | None, build: str | None) -> Firmware:
    """
    Return the firmware that `espctl flash WHAT` means.

    what   a bundle file, the output folder of a build, a project's folder; None: this folder's
    build  a task or job that this client started; goes before `what`

    Raises NoEarlierBuild, TaskNotFound, BundleInvalid, SourceNotFound.
    """
    if build is not None:
        record = client.records.find(build)
        if record is None or record.kind != "build":
            raise TaskNotFound(f"this client knows no build {build}", task_id=build)
        return _of_record(record)
    if what is not None and what.is_file():
        return _of_bundle(what)
    if what is not None and (what / BUNDLE).is_file():
        return _of_bundle(what / BUNDLE)
    if what is not None and not what.is_dir():
        raise SourceNotFound(f"there is no file or folder {what}")
    root = str(project_root(what or Path()))
    record = client.records.last_build(root, state=TaskState.SUCCEEDED)
    if record is None:
        raise NoEarlierBuild(f"no build of {root} is known here that succeeded")
    return _of_record(record)


def read_manifest(bundle: Path) -> Manifest:
    """Return the manifest at the head of a flash bundle. Raises BundleInvalid."""
    try:
        if bundle.stat().st_size > MAX_BUNDLE_BYTES:
            raise BundleInvalid(f"{bundle} is larger than any board's flash")
        with tarfile.open(bundle, "r:gz") as tar:
            head = tar.next()
            stream = tar.extractfile(head) if head is not None and head.isreg() else None
            if head is None or stream is None or head.name != "manifest.json":
                raise BundleInvalid(f"{bundle} does not begin with its manifest.json")
            return Manifest.model_validate_json(stream.read(_MAX_MANIFEST_BYTES))
    except (tarfile.TarError, zlib.error, EOFError, ValidationError) as exc:
        raise BundleInvalid(f"{bundle} is no flash bundle") from exc
    except OSError as exc:
        raise BundleInvalid(f"{bundle} can't be read: {exc.strerror or exc}") from exc


def _of_bundle(bundle: Path) -> Firmware:
    manifest = read_manifest(bundle)
    return Firmware(manifest.target, manifest.elf_sha256, None, bundle)


def _of_record(record: TaskRecord) -> Firmware:
    if record.state != TaskState.SUCCEEDED:
        raise NoEarlierBuild(f"the build {record.task_id} is {record.state}, not succeeded")
    bundle = Path(record.output) / BUNDLE if record.output else None
    return Firmware(
        record.target or "",
        record.elf_sha256,
        record,
        bundle if bundle is not None and bundle.is_file() else None,
    )
