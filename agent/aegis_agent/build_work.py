"""Source in and build: the requests of a session that have to do with building."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from aegis_links.file_receiver import partial_path, partial_size
from aegis_links.spool import Spool
from aegis_links.transfers import TransferPort
from aegis_protocol.control_link import Facts
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.failures.http import BadRequest, TargetNotAllowed
from aegis_protocol.failures.source import (
    DiskFull,
    PlanUnknown,
    SourceTooLarge,
    UploadIncomplete,
    WorkspaceBusy,
)
from aegis_protocol.ids import new_id
from aegis_protocol.rpc import (
    BuildStartParams,
    BuildStartResult,
    SourcePlanParams,
    SourcePlanResult,
    SourcePushParams,
    SourcePushResult,
    TransferRef,
)
from aegis_protocol.signing import b64
from aegis_protocol.source import MAX_PLAN_BYTES, SourcePlan, pack_bitmap, plan_digest
from pydantic import ValidationError

from aegis_agent.build import Build, BuildRequest
from aegis_agent.cut_uploads import KEPT_S, CutUpload
from aegis_agent.source import PlannedSource, SourceStore

if TYPE_CHECKING:
    from aegis_agent.job import Job
    from aegis_agent.services import Services
    from aegis_agent.session import PeerSession
    from aegis_agent.tasks import Task

log = structlog.get_logger()

_PLANS: Final = 4
_PACK_SLACK_BYTES: Final = 65_536
"""How much longer than its content a compressed pack may be, besides one percent."""
_LEFT_FREE_BYTES: Final = 64 * 1024 * 1024


class Plans:
    """
    The plans of one session, the newest few; each knows what the agent still lacks.

    turn  held while something is uploaded: one thing at a time
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._plans: OrderedDict[str, PlannedSource] = OrderedDict()

    def put(self, planned: PlannedSource) -> None:
        self._plans[planned.plan_id] = planned
        while len(self._plans) > _PLANS:
            self._plans.popitem(last=False)

    def get(self, plan_id: str) -> PlannedSource:
        try:
            return self._plans[plan_id]
        except KeyError:
            raise PlanUnknown(f"there is no plan {plan_id} in this session") from None


async def plan(session: PeerSession, plans: Plans, wish: SourcePlanParams) -> SourcePlanResult:
    """Take a plan and answer what of it is not here yet."""
    if wish.plan.size_bytes > MAX_PLAN_BYTES:
        raise SourceTooLarge("the plan is larger than any project's may be")
    async with plans.turn:
        path = session.services.incoming / new_id()
        try:
            await _receive(session, wish.plan, path)
            given = await asyncio.to_thread(_read_plan, path)
        finally:
            _removed(path)
        services, identity = session.services, session.job.identity
        for cut in services.cut_uploads.outdated(identity, plan_digest(given)):
            await _salvage(services.sources, cut)
        planned = await services.sources.plan(identity, given)
        plans.put(planned)
    session.job.project_key = given.project_id
    return SourcePlanResult(
        plan_id=planned.plan_id,
        missing=b64(pack_bitmap(planned.missing)),
        missing_bytes=planned.missing_bytes,
        missing_count=planned.missing_count,
    )


async def push(session: PeerSession, plans: Plans, wish: SourcePushParams) -> SourcePushResult:
    """
    Take the missing blobs as one pack; each is verified before it is kept.

    When the upload is cut, what has arrived is kept: the same pack goes on there, and of another
    upload's the blobs that are whole.
    """
    async with plans.turn:
        planned = plans.get(wish.plan_id)
        most_bytes = planned.missing_bytes + planned.missing_bytes // 100 + _PACK_SLACK_BYTES
        if wish.pack.size_bytes > most_bytes:
            raise SourceTooLarge("the pack is larger than what is missing")
        services, identity, digest = session.services, session.job.identity, wish.pack.sha256
        fresh = services.incoming / new_id()
        async with services.cut_uploads.receiving(identity, digest, fresh) as path:
            try:
                await _receive(session, wish.pack, path)
            except BaseException:
                _keep(services, identity, planned, wish, path)
                raise
        # Unpacked to its end, whatever becomes of the session: what is sent once is kept.
        unpacking = _unpacked(services.sources, identity, planned, path, wish.compression)
        whole = await asyncio.shield(services.background.start(unpacking, name="unpack"))
        plans.put(whole)
    return SourcePushResult(plan_id=whole.plan_id, source_sha256=plan_digest(whole.plan))


async def start(session: PeerSession, plans: Plans, wish: BuildStartParams) -> BuildStartResult:
    """Begin a build; what is wrong with the project or its target is said at once."""
    job, services = session.job, session.services
    planned = plans.get(wish.plan_id)
    if planned.missing_count:
        raise UploadIncomplete(f"{planned.missing_count} files of the project are not here yet")
    granted = session.claims.execution
    # A grant without a target is for no build: a key that is limited to some could else ask so.
    if granted.target != wish.target:
        raise TargetNotAllowed(
            f"the grant is for {granted.target or 'no target'}, not {wish.target}"
        )
    async with job.starting_build:
        job.check_open()
        if any(task.kind == "build" and not task.over for task in job.tasks.values()):
            raise WorkspaceBusy("a build of this job is running")
        request = BuildRequest(
            identity=job.identity,
            job_id=job.job_id,
            task_id=new_id(),
            planned=planned,
            params=wish,
            slot=job.slot,
            cpu_cores=job.execution.cpu_cores,
            memory_mb=job.execution.memory_mb,
            # The job's end cancels the build; here is only what the job may be extended to.
            timeout_s=max(job.remaining_s(), float(services.config.max_job_secs)),
            agent_id=services.identity.agent_id,
        )
        try:
            build = await services.builder.prepare(request)
        except Exception as exc:
            services.quarantine.noted(exc)
            raise
        job.check_open()  # before there is a folder that nobody would remove
        spool = Spool(job.folder / request.task_id, capacity_bytes=services.config.spool_bytes)
        task = job.new_task("build", spool=spool, task_id=request.task_id)
        task.writer, task.type, task.resize = session, build.type, build.resize
        job.run(task, _build(job, task, spool, build, services))
    assert task.stream is not None
    return BuildStartResult(
        task_id=task.task_id,
        stream=task.stream,
        toolchain=build.toolchain,
        environment=build.environment,
    )


def source_port(session: PeerSession) -> TransferPort:
    """The port on `source`, or ActionNotGranted where the grant lacks the channel."""
    if session.source is None:
        raise ActionNotGranted("uploads travel on `source`, which the grant lacks")
    return session.source


async def _build(job: Job, task: Task, spool: Spool, build: Build, services: Services) -> None:
    task.start()
    try:
        outcome = await build.run(spool, partial(job.tell_progress, task))
    except AegisError as exc:
        services.quarantine.noted(exc)
        task.fail(exc)
        return
    except Exception as exc:
        services.quarantine.noted(exc)
        raise
    services.quarantine.noted(outcome.error)
    if outcome.error is not None:
        task.fail(outcome.error, build=outcome.result)
        return
    task.succeed(build=outcome.result)
    digests = {artifact.name: artifact.sha256 for artifact in outcome.result.artifacts}
    facts = {"task_id": task.task_id, "artifacts": digests}
    services.tell_control(Facts(job_id=job.job_id, facts=facts))


async def _receive(session: PeerSession, ref: TransferRef, path: Path) -> None:
    port = source_port(session)
    free_bytes = (await asyncio.to_thread(shutil.disk_usage, path.parent)).free
    if free_bytes < ref.size_bytes + _LEFT_FREE_BYTES:
        raise DiskFull("the agent's disk has no room for this upload", size_bytes=ref.size_bytes)
    await port.receive_to(ref.transfer, path, size_bytes=ref.size_bytes, sha256=ref.sha256)


def _read_plan(path: Path) -> SourcePlan:
    try:
        return SourcePlan.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise BadRequest(f"the plan is not valid: {where}: {wrong['msg'][:300]}") from exc


async def _unpacked(
    sources: SourceStore, identity: str, planned: PlannedSource, pack: Path, compression: str
) -> PlannedSource:
    try:
        return await sources.push(identity, planned, pack, compression)
    finally:
        _removed(pack)


def _keep(
    services: Services, identity: str, planned: PlannedSource, wish: SourcePushParams, path: Path
) -> None:
    """Keep what has arrived for a while; later, the blobs that are whole in it."""
    arrived = partial_size(path)
    if arrived == 0:
        _removed(path)
        return
    cut = CutUpload(identity, planned, wish.pack.sha256, wish.compression, path, arrived)
    for old in services.cut_uploads.keep(cut):
        services.background.start(_salvage(services.sources, old), name="salvage")
    services.background.start(_expire(services, cut), name="cut-upload")


async def _expire(services: Services, cut: CutUpload) -> None:
    await asyncio.sleep(KEPT_S)
    if services.cut_uploads.give_up(cut):
        await _salvage(services.sources, cut)


async def _salvage(sources: SourceStore, cut: CutUpload) -> None:
    part = partial_path(cut.path)
    try:
        if part.exists():
            await sources.push(cut.identity, cut.planned, part, cut.compression)
    except AegisError as exc:
        log.info("upload.cut", code=exc.code, detail=exc.message)
    finally:
        _removed(cut.path)


def _removed(path: Path) -> None:
    """Leave nothing of an upload behind, whole or cut."""
    path.unlink(missing_ok=True)
    partial_path(path).unlink(missing_ok=True)
