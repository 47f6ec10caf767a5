"""Source to the agent: the plan, then only what it lacks, in one pack."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegis_protocol.failures.http import ControlAnswerInvalid
from aegis_protocol.failures.source import SourceTooLarge
from aegis_protocol.rpc import (
    Compression,
    SourcePlanParams,
    SourcePlanResult,
    SourcePushParams,
    SourcePushResult,
    TransferRef,
)
from aegis_protocol.signing import unb64
from aegis_protocol.source import MAX_PLAN_BYTES, SourceFile, unique_blobs, unpack_bitmap

from aegis_client.connection import Connection
from aegis_client.paired import requested_with
from aegis_client.project import Project
from aegis_client.reporter import Reporter
from aegis_client.scratch import scratch_folder

_REQUEST_S: Final = 600.0
_SLOWEST_BYTES_S: Final = 4096
"""A request that waits for a transfer lasts as long as that one needs; a stall is seen there."""
_LEVEL: Final = 6


@dataclass(frozen=True)
class Uploaded:
    """What the agent has now. sent_bytes: as it travelled."""

    plan_id: str
    sent_files: int
    sent_bytes: int


async def upload(connection: Connection, project: Project, reporter: Reporter) -> Uploaded:
    """
    Bring the project to the agent.

    Raises SourceChanged when a file changed meanwhile, and what the agent refuses.
    """
    plan = await _send_plan(connection, project)
    if plan.missing_count == 0:
        return Uploaded(plan.plan_id, 0, 0)
    blobs = unique_blobs(project.plan.files)
    try:
        wanted = unpack_bitmap(unb64(plan.missing), len(blobs))
    except ValueError as exc:
        raise ControlAnswerInvalid(
            "the agent's list of missing files does not fit the plan"
        ) from exc
    missing = [blob for blob, lacks in zip(blobs, wanted, strict=True) if lacks]
    compression: Compression = "deflate" if "deflate" in connection.hello.compressions else "none"
    with scratch_folder() as folder:
        pack = folder / "pack"
        digest = await asyncio.to_thread(write_pack, project, missing, pack, compression)
        size = pack.stat().st_size
        ref = TransferRef(transfer=connection.source.next_number(), size_bytes=size, sha256=digest)
        params = SourcePushParams(plan_id=plan.plan_id, pack=ref, compression=compression)

        def progressed(offset: int) -> None:
            reporter.progress("upload", offset, size, f"{len(missing)} files")

        await requested_with(
            connection.call("source.push", params, SourcePushResult, deadline_s=request_s(size)),
            connection.source.send_file(ref.transfer, pack, sha256=digest, on_progress=progressed),
        )
    reporter.progress("upload", size, size, f"{len(missing)} files")
    return Uploaded(plan.plan_id, len(missing), size)


def write_pack(
    project: Project, files: Sequence[SourceFile], pack: Path, compression: Compression
) -> str:
    """
    Write the bytes of `files` one after the other to `pack`; return the SHA-256 of what stands
    there. `deflate` is one zlib stream (RFC 1950) around all of them. Blocking.
    """
    digest = sha256()
    packer = zlib.compressobj(_LEVEL) if compression == "deflate" else None
    with pack.open("wb") as out:

        def put(data: bytes) -> None:
            digest.update(data)
            out.write(data)

        for file in files:
            for piece in project.read(file):
                put(packer.compress(piece) if packer else piece)
        if packer:
            put(packer.flush())
    return digest.hexdigest()


def request_s(size_bytes: int) -> float:
    """How long a request may take that waits for a transfer of that size."""
    return _REQUEST_S + size_bytes / _SLOWEST_BYTES_S


async def _send_plan(connection: Connection, project: Project) -> SourcePlanResult:
    data = project.plan.model_dump_json().encode()
    if len(data) > MAX_PLAN_BYTES:
        raise SourceTooLarge("the list of the project's files is too long")
    digest = sha256(data).hexdigest()
    ref = TransferRef(transfer=connection.source.next_number(), size_bytes=len(data), sha256=digest)
    return await requested_with(
        connection.call(
            "source.plan",
            SourcePlanParams(plan=ref),
            SourcePlanResult,
            deadline_s=request_s(len(data)),
        ),
        connection.source.send_file(ref.transfer, data, sha256=digest),
    )
