"""Back to a job that goes on without us: its build watched to the end, its results fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.rpc import TaskInfo

from aegis_client.build import follow_build
from aegis_client.build_project import BuildReport, fetched, output_folder
from aegis_client.client import Client
from aegis_client.needs import ATTACH
from aegis_client.records import TaskRecord
from aegis_client.reporter import Reporter
from aegis_client.session import Session
from aegis_client.wish import Wish


async def attach(
    client: Client,
    job_id: str,
    output: Path | None,
    wait_s: float,
    reporter: Reporter,
    sizes: AsyncIterator[tuple[int, int]] | None = None,
) -> BuildReport:
    """
    Watch the newest build of a job from its first byte, and fetch what it leaves. Whoever is
    canceled while watching only leaves: the build goes on.

    sizes  (columns, rows) of the viewer's terminal, each time they change

    Raises JobNotFound, JobOver, TaskNotFound when the job has no build.
    """
    wish = Wish(needs=ATTACH, job_id=job_id, wait_s=wait_s)
    async with client.session(wish, reporter) as session:
        build = _newest_build(session)
        record = client.records.find(build.task_id)
        task = await follow_build(
            session, build.task_id, build.stream or 0, client.records, reporter, sizes
        )
        report = _report(session, task, record)
        if report.error is None:
            root = Path(record.project_dir) if record and record.project_dir else Path.cwd()
            if output is None and record is None:
                output = root / f"firmware-{job_id}"
            folder = output_folder(root, output, report.environment)
            report = await fetched(session, client, report, folder, reporter)
        # Watched to its end: the agent's slot is free for others.
        session.keep_job = False
        return report


def _newest_build(session: Session) -> TaskInfo:
    builds = [t for t in session.tasks.values() if t.kind == "build" and t.stream is not None]
    if not builds:
        raise TaskNotFound(f"job {session.job_id} has no build", job_id=session.job_id)
    return max(builds, key=lambda task: task.task_id)


def _report(session: Session, task: TaskInfo, record: TaskRecord | None) -> BuildReport:
    manifest = task.build.manifest if task.build else None
    return BuildReport(
        job_id=session.job_id,
        task=task,
        agent_id=session.agent.id,
        agent_name=session.agent.name,
        target=manifest.target if manifest else (record.target if record else None) or "",
        environment=manifest.environment if manifest else record.environment if record else "",
        toolchain=manifest.toolchain.kind if manifest else "",
        sent_files=0,
        sent_bytes=0,
    )
