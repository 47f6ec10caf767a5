"""Artifacts from the agent to a folder: resumed, verified, and named only when whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Final

from aegis_links.transfers import partial_size
from aegis_protocol.failures.build import ArtifactMissing, ArtifactUnsafe
from aegis_protocol.failures.source import PathUnsafe
from aegis_protocol.manifest import Artifact, Manifest
from aegis_protocol.rpc import (
    ArtifactFetchParams,
    ArtifactFetchResult,
    ArtifactsResult,
    TaskParams,
)
from aegis_protocol.signing import manifest_statement, unb64, verified
from aegis_protocol.source import checked_path

from aegis_client.connection import Connection
from aegis_client.failures import OutputUnwritable
from aegis_client.paired import requested_with
from aegis_client.reporter import Reporter
from aegis_client.session import Session

AT_ONCE: Final = 4
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
BUNDLE: Final = "flash_bundle.tar.gz"
SIGNATURE_BYTES: Final = 64


async def list_artifacts(session: Session, task_id: str) -> tuple[Artifact, ...]:
    """What a build of this identity left on the agent. Raises TaskNotFound."""
    result = await session.call("artifacts.list", TaskParams(task_id=task_id), ArtifactsResult)
    return result.artifacts


async def download(
    session: Session,
    task_id: str,
    artifacts: Sequence[Artifact],
    folder: Path,
    reporter: Reporter,
) -> list[Path]:
    """
    Fetch `artifacts` into `folder`, made if need be. A file that is there already with the right
    digest is left as it is; what an earlier try or a lost connection left in
    NAME.part is continued.

    Raises ArtifactUnsafe for a name that leaves the folder, OutputUnwritable, DigestMismatch.
    """
    paths = [_place(folder, artifact.name) for artifact in artifacts]
    total = sum(artifact.size_bytes for artifact in artifacts)
    got: dict[str, int] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    def progressed(name: str, offset: int) -> None:
        got[name] = offset
        reporter.progress("download", sum(got.values()), total, name)

    async def one(artifact: Artifact, path: Path) -> None:
        async with gate:
            if not await asyncio.to_thread(_is_there, path, artifact):
                await _fetch(session, task_id, artifact, path, progressed)
            progressed(artifact.name, artifact.size_bytes)

    fetching = [
        asyncio.create_task(one(artifact, path), name=f"fetch-{artifact.name}")
        for artifact, path in zip(artifacts, paths, strict=True)
    ]
    try:
        await asyncio.gather(*fetching)
    finally:
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)
    return paths


def checked_manifest(folder: Path, agent_key: bytes) -> Manifest:
    """
    Return the manifest in `folder` once the agent's signature of it and the digest of every image
    were verified.

    Raises ArtifactMissing, ArtifactUnsafe.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
        signature = _signature((folder / SIGNATURE).read_bytes())
        manifest = Manifest.model_validate_json(data)
    except FileNotFoundError as exc:
        raise ArtifactMissing(f"{folder} has no {MANIFEST} with its signature") from exc
    except (OSError, ValueError) as exc:
        raise ArtifactUnsafe(f"the manifest in {folder} can't be read") from exc
    if not verified(agent_key, signature, manifest_statement(data)):
        raise ArtifactUnsafe(f"the manifest in {folder} is not signed by the agent that built it")
    for image in manifest.images:
        path = _place(folder, image.path)
        if not path.is_file() or _digest(path) != image.sha256:
            raise ArtifactUnsafe(f"{image.path} is not the image that the manifest names")
    return manifest


async def _fetch(
    session: Session,
    task_id: str,
    artifact: Artifact,
    path: Path,
    progressed: Callable[[str, int], None],
) -> None:
    async def step(connection: Connection) -> None:
        number = connection.firmware.next_number()
        params = ArtifactFetchParams(
            task_id=task_id, name=artifact.name, transfer=number, offset=partial_size(path)
        )
        await requested_with(
            connection.call("artifact.fetch", params, ArtifactFetchResult),
            connection.firmware.receive_to(
                number,
                path,
                size_bytes=artifact.size_bytes,
                sha256=artifact.sha256,
                on_progress=lambda offset: progressed(artifact.name, offset),
            ),
        )

    await session.repeated(step)


def _place(folder: Path, name: str) -> Path:
    """Where an artifact goes. Its name comes from the agent, and may not lead elsewhere."""
    try:
        path = folder.joinpath(*checked_path(name).split("/"))
    except PathUnsafe as exc:
        raise ArtifactUnsafe(f"the agent named an artifact that leaves its folder: {exc}") from exc
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        inside = path.parent.resolve().is_relative_to(folder.resolve())
    except OSError as exc:
        raise OutputUnwritable(f"{path.parent} can't be made: {exc.strerror}") from exc
    if not inside or path.is_dir():
        raise OutputUnwritable(f"{path} is a folder, or a link leads out of {folder}")
    return path


def _is_there(path: Path, artifact: Artifact) -> bool:
    try:
        return path.stat().st_size == artifact.size_bytes and _digest(path) == artifact.sha256
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _signature(data: bytes) -> bytes:
    """64 raw bytes, or their base64url."""
    return data if len(data) == SIGNATURE_BYTES else unb64(data.decode("ascii").strip())
