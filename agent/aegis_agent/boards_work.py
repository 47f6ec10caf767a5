"""Flash and monitor: the requests of a session that have to do with boards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aegis_protocol.actions import Action
from aegis_protocol.control_link import Facts, ToControl
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import BoardBusy, ImageInvalid
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.ids import new_id
from aegis_protocol.manifest import Manifest
from aegis_protocol.rpc import (
    FlashStartParams,
    FlashStartResult,
    MonitorOpenParams,
    MonitorOpenResult,
    TaskProgress,
    TransferRef,
)

from aegis_agent.boards import BoardDevice, Console, FlashJob
from aegis_agent.build_work import source_port
from aegis_agent.flash_bundle import MAX_BUNDLE_BYTES, FlashImages, unpack

if TYPE_CHECKING:
    from aegis_agent.jobs import Job
    from aegis_agent.session import PeerSession
    from aegis_agent.tasks import Task


async def start_flash(session: PeerSession, wish: FlashStartParams) -> FlashStartResult:
    """Begin to write a build, or a bundle that the client sends, to a board of the job."""
    job = session.job
    device = session.services.boards.device(wish.board_id, job.job_id)
    if (wish.task_id is None) == (wish.bundle is None):
        raise BadRequest("flash.start takes either task_id or bundle")
    if any(
        task.kind == "flash" and task.board_id == wish.board_id and not task.over
        for task in job.tasks.values()
    ):
        raise BoardBusy(f"{wish.board_id} is being flashed")
    if wish.bundle is not None:
        flash = await _from_bundle(session, wish, wish.bundle)
    else:
        assert wish.task_id is not None
        flash = _from_results(session, wish, wish.task_id)
    task = job.new_task("flash", spool=None, board_id=wish.board_id)
    job.run(task, _flash(job, task, device, flash, session.services.tell_control))
    return FlashStartResult(task_id=task.task_id)


async def open_monitor(session: PeerSession, wish: MonitorOpenParams) -> MonitorOpenResult:
    """Open a board's console, or join the one that the job has open already."""
    job = session.job
    device = session.services.boards.device(wish.board_id, job.job_id)
    task = next(
        (
            task
            for task in job.tasks.values()
            if task.kind == "monitor" and task.board_id == wish.board_id and not task.over
        ),
        None,
    )
    if task is None:
        console = await device.open_console(baud=wish.baud, spool_dir=job.folder / new_id())
        task = job.new_task("monitor", spool=console.spool, board_id=wish.board_id)
        task.type = console.write
        job.run(task, _watch(task, console))
    assert task.stream is not None
    assert task.spool is not None
    if wish.write and Action.CONSOLE_WRITE in session.actions and task.writer is None:
        task.writer = session
    offset = task.spool.end_offset
    if wish.reset:
        await device.reset()
    return MonitorOpenResult(
        task_id=task.task_id,
        stream=task.stream,
        offset=offset,
        writer=task.writer is session,
    )


async def _flash(
    job: Job,
    task: Task,
    device: BoardDevice,
    flash: FlashJob,
    tell_control: Callable[[ToControl], bool],
) -> None:
    def progress(phase: str, done: int, total: int, detail: str = "") -> None:
        job.notify(
            "task.progress",
            TaskProgress(
                task_id=task.task_id, phase=phase, done=done, total=total, detail=detail[:200]
            ),
        )

    task.start()
    try:
        result = await device.flash(flash, progress)
    except AegisError as exc:
        task.fail(exc)
        return
    task.succeed(flash=result)
    tell_control(
        Facts(
            job_id=job.job_id,
            facts={"task_id": task.task_id, "board": result.board_id, "mac": result.mac},
        )
    )


async def _watch(task: Task, console: Console) -> None:
    task.start()
    try:
        error = await console.wait_closed()
    finally:
        # The port must be closed before the board goes to somebody else.
        await asyncio.shield(console.close())
    if error is not None:
        task.fail(error)
    else:
        task.succeed()


def _from_results(session: PeerSession, wish: FlashStartParams, task_id: str) -> FlashJob:
    results, identity = session.services.results, session.job.identity
    manifest = results.manifest(identity, task_id)
    images = tuple(
        (image, results.path(identity, task_id, image.path)[0]) for image in manifest.images
    )
    return _job(manifest, images, wish)


async def _from_bundle(
    session: PeerSession, wish: FlashStartParams, bundle: TransferRef
) -> FlashJob:
    port = source_port(session)
    if bundle.size_bytes > MAX_BUNDLE_BYTES:
        raise ImageInvalid("the bundle is larger than any board's flash")
    archive = session.job.folder / f"{new_id()}.tar.gz"
    await port.receive_to(
        bundle.transfer, archive, size_bytes=bundle.size_bytes, sha256=bundle.sha256
    )
    try:
        manifest, images = await asyncio.to_thread(unpack, archive, session.job.folder / new_id())
    finally:
        archive.unlink(missing_ok=True)
    return _job(manifest, images, wish)


def _job(manifest: Manifest, images: FlashImages, wish: FlashStartParams) -> FlashJob:
    return FlashJob(
        images=images,
        target=manifest.target,
        settings=manifest.flash,
        baud=wish.baud,
        erase_all=wish.erase_all,
        elf_sha256=manifest.elf_sha256,
    )
