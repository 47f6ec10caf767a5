"""Source in, build, log out: the requests of a session that have to do with building."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from aegis_links.spool import Piece, Spool
from aegis_links.transfers import TransferPort
from aegis_protocol.control_link import Facts, ToControl
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.failures.http import BadRequest, TargetNotAllowed
from aegis_protocol.failures.source import (
    PlanUnknown,
    SourceTooLarge,
    UploadIncomplete,
    WorkspaceBusy,
)
from aegis_protocol.ids import new_id
from aegis_protocol.rpc import (
    BuildStartParams,
    BuildStartResult,
    LogsTailParams,
    LogsTailResult,
    SourcePlanParams,
    SourcePlanResult,
    SourcePushParams,
    SourcePushResult,
    TaskProgress,
    TransferRef,
)
from aegis_protocol.signing import b64
from aegis_protocol.source import (
    MAX_PLAN_BYTES,
    MAX_SOURCE_BYTES,
    SourcePlan,
    pack_bitmap,
    plan_digest,
)
from pydantic import ValidationError

from aegis_agent.build import Build, BuildRequest
from aegis_agent.source import PlannedSource

if TYPE_CHECKING:
    from aegis_agent.jobs import Job
    from aegis_agent.session import PeerSession
    from aegis_agent.tasks import Task

log = structlog.get_logger()

_PLANS: Final = 8
_ANSI: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


class Plans:
    """The plans of one session, the newest few; each knows what the agent still lacks."""

    def __init__(self) -> None:
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
    path = await _received(session, wish.plan)
    try:
        given = SourcePlan.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise BadRequest(f"the plan is not valid: {where}: {wrong['msg']}") from exc
    finally:
        path.unlink(missing_ok=True)
    planned = await session.services.sources.plan(session.job.identity, given)
    plans.put(planned)
    session.job.project_key = given.project_id
    return SourcePlanResult(
        plan_id=planned.plan_id,
        missing=b64(pack_bitmap(planned.missing)),
        missing_bytes=planned.missing_bytes,
        missing_count=planned.missing_count,
    )


async def push(session: PeerSession, plans: Plans, wish: SourcePushParams) -> SourcePushResult:
    """Take the missing blobs as one pack; each is verified before it is kept."""
    planned = plans.get(wish.plan_id)
    if wish.pack.size_bytes > MAX_SOURCE_BYTES:
        raise SourceTooLarge("the pack is larger than any project's may be")
    path = await _received(session, wish.pack)
    try:
        whole = await session.services.sources.push(
            session.job.identity, planned, path, wish.compression
        )
    finally:
        path.unlink(missing_ok=True)
    plans.put(whole)
    return SourcePushResult(plan_id=whole.plan_id, source_sha256=plan_digest(whole.plan))


async def start(session: PeerSession, plans: Plans, wish: BuildStartParams) -> BuildStartResult:
    """Begin a build; what is wrong with the project or its target is said at once."""
    job, services = session.job, session.services
    planned = plans.get(wish.plan_id)
    if planned.missing_count:
        raise UploadIncomplete(f"{planned.missing_count} files of the project are not here yet")
    if job.execution.target not in (None, wish.target):
        raise TargetNotAllowed(f"the grant is for {job.execution.target}, not {wish.target}")
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
        timeout_s=float(job.execution.timeout_secs),
        agent_id=services.identity.agent_id,
    )
    build = await services.builder.prepare(request)
    spool = Spool(job.folder / request.task_id, capacity_bytes=services.config.spool_bytes)
    task = job.new_task("build", spool=spool, task_id=request.task_id)
    task.writer, task.type, task.resize = session, build.type, build.resize
    job.run(task, _build(job, task, spool, build, session.services.tell_control))
    assert task.stream is not None
    return BuildStartResult(
        task_id=task.task_id,
        stream=task.stream,
        toolchain=build.toolchain,
        environment=build.environment,
    )


async def tail(session: PeerSession, wish: LogsTailParams) -> LogsTailResult:
    """A piece of a build's output, without colours: of a running one, or of its kept log."""
    task = session.job.tasks.get(wish.task_id)
    if task is not None and task.spool is not None and not task.over:
        return _tail_of_spool(task.spool, wish)
    path, artifact = session.services.results.path(session.job.identity, wish.task_id, "build.log")
    offset = wish.offset
    if offset is None:
        offset = max(0, artifact.size_bytes - wish.max_bytes)
    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read(wish.max_bytes)
    return _tailed(raw, offset, artifact.size_bytes)


async def _build(
    job: Job, task: Task, spool: Spool, build: Build, tell_control: Callable[[ToControl], bool]
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
        outcome = await build.run(spool, progress)
    except AegisError as exc:
        task.fail(exc)
        return
    if outcome.error is not None:
        task.fail(outcome.error, build=outcome.result)
        return
    task.succeed(build=outcome.result)
    digests = {artifact.name: artifact.sha256 for artifact in outcome.result.artifacts}
    tell_control(Facts(job_id=job.job_id, facts={"task_id": task.task_id, "artifacts": digests}))


async def _received(session: PeerSession, ref: TransferRef) -> Path:
    path = session.services.incoming / new_id()
    await source_port(session).receive_to(
        ref.transfer, path, size_bytes=ref.size_bytes, sha256=ref.sha256
    )
    return path


def source_port(session: PeerSession) -> TransferPort:
    """The port on `source`, or ActionNotGranted where the grant lacks the channel."""
    if session.source is None:
        raise ActionNotGranted("uploads travel on `source`, which the grant lacks")
    return session.source


def _tail_of_spool(spool: Spool, wish: LogsTailParams) -> LogsTailResult:
    offset = wish.offset
    if offset is None:
        offset = max(spool.start_offset, spool.end_offset - wish.max_bytes)
    found = spool.read(offset, wish.max_bytes)
    if isinstance(found, Piece):
        return _tailed(found.data, found.offset, spool.end_offset)
    return _tailed(b"", max(offset, spool.start_offset), spool.end_offset)


def _tailed(raw: bytes, offset: int, total: int) -> LogsTailResult:
    text = _ANSI.sub(b"", raw).decode(errors="replace")
    return LogsTailResult(
        text=text, offset=offset, next_offset=offset + len(raw), total_bytes=total
    )
