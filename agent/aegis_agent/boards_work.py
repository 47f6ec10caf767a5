"""Flash and monitor: the requests of a session that have to do with boards."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.actions import Action
from aegis_protocol.control_link import Facts, ToControl
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import FlashCanceled, ImageInvalid
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.ids import new_id
from aegis_protocol.manifest import Manifest
from aegis_protocol.rpc import (
    FlashStartParams,
    FlashStartResult,
    MonitorOpenParams,
    MonitorOpenResult,
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
    """
    Begin to write a build, or a bundle that the client sends, to a board of the job.

    What is known to be wrong without touching the board is raised, and nothing begun.
    """
    job = session.job
    device = session.services.boards.device(wish.board_id, job.job_id)
    if (wish.task_id is None) == (wish.bundle is None):
        raise BadRequest("flash.start takes either task_id or bundle")
    folder = job.folder / new_id()
    try:
        if wish.bundle is not None:
            flash = await _from_bundle(session, wish, wish.bundle, folder)
        else:
            assert wish.task_id is not None
            flash = _from_results(session, wish, wish.task_id)
        device.check(flash)
        task = job.new_task("flash", spool=None, board_id=wish.board_id)
    except BaseException:
        await _removed(folder)
        raise
    job.run(task, _flash(job, task, device, flash, folder, session.services.tell_control))
    return FlashStartResult(task_id=task.task_id)


async def open_monitor(session: PeerSession, wish: MonitorOpenParams) -> MonitorOpenResult:
    """
    Open a board's console, or join the one that the job has open already, at whatever rate.

    A console that was opened for a reset that can't be is closed again.
    """
    job = session.job
    device = session.services.boards.device(wish.board_id, job.job_id)
    if wish.reset and Action.BOARD_FLASH not in session.actions:
        raise ActionNotGranted(
            f"a reset needs the action {Action.BOARD_FLASH}, which the grant does not hold",
            action=str(Action.BOARD_FLASH),
        )
    async with device.console_lock:
        task = _open_monitor_of(job, wish.board_id)
        is_new = task is None
        if task is None:
            task = await _new_monitor(job, device, wish)
    assert task.stream is not None
    assert task.spool is not None
    offset = task.spool.end_offset
    if wish.reset:
        try:
            await device.reset()
        except AegisError:
            if is_new:
                await job.cancel(task)
            raise
    if wish.write and Action.CONSOLE_WRITE in session.actions and task.writer is None:
        task.writer = session
    return MonitorOpenResult(
        task_id=task.task_id,
        stream=task.stream,
        offset=offset,
        writer=task.writer is session,
    )


async def _new_monitor(job: Job, device: BoardDevice, wish: MonitorOpenParams) -> Task:
    task_id = new_id()
    console = await device.open_console(baud=wish.baud, spool_dir=job.folder / task_id)
    try:
        task = job.new_task("monitor", spool=console.spool, board_id=wish.board_id, task_id=task_id)
    except BaseException:
        await uninterrupted(console.close())
        raise
    task.type = console.write
    job.run(task, _watch(task, console))
    return task


def _open_monitor_of(job: Job, board_id: str) -> Task | None:
    return next(
        (
            task
            for task in job.tasks.values()
            if task.kind == "monitor" and task.board_id == board_id and not task.over
        ),
        None,
    )


async def _flash(
    job: Job,
    task: Task,
    device: BoardDevice,
    flash: FlashJob,
    folder: Path,
    tell_control: Callable[[ToControl], bool],
) -> None:
    task.start()
    try:
        result = await device.flash(flash, partial(job.tell_progress, task))
    except AegisError as exc:
        task.fail(exc)
        return
    except asyncio.CancelledError:
        task.fail(FlashCanceled(f"flashing {task.board_id} was canceled"))
        raise
    finally:
        await _removed(folder)
    task.succeed(flash=result)
    tell_control(
        Facts(
            job_id=job.job_id,
            facts={
                "task_id": task.task_id,
                "board": result.board_id,
                "mac": result.mac,
                "elf_sha256": result.elf_sha256,
            },
        )
    )


async def _removed(folder: Path) -> None:
    await uninterrupted(asyncio.to_thread(shutil.rmtree, folder, True))


async def _watch(task: Task, console: Console) -> None:
    task.start()
    try:
        error = await console.wait_closed()
    finally:
        # The port must be closed before the board goes to somebody else.
        await uninterrupted(console.close())
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
    session: PeerSession, wish: FlashStartParams, bundle: TransferRef, folder: Path
) -> FlashJob:
    port = source_port(session)
    if bundle.size_bytes > MAX_BUNDLE_BYTES:
        raise ImageInvalid("the bundle is larger than any board's flash")
    archive = session.services.incoming / f"{new_id()}.tar.gz"
    try:
        await port.receive_to(
            bundle.transfer, archive, size_bytes=bundle.size_bytes, sha256=bundle.sha256
        )
        manifest, images = await uninterrupted(asyncio.to_thread(unpack, archive, folder))
    finally:
        for name in (archive, archive.with_name(f"{archive.name}.part")):
            name.unlink(missing_ok=True)
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
