"""A project from its folder to firmware: read, send, build, fetch. And what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis_protocol.errors import AegisError
from aegis_protocol.manifest import Manifest
from aegis_protocol.rpc import BuildResult, TaskInfo

from aegis_client.artifacts import checked_manifest, download
from aegis_client.build import (
    BuildOptions,
    StartedBuild,
    cancel_build,
    failure,
    follow_build,
    start_build,
)
from aegis_client.client import Client
from aegis_client.failures import OutputUnwritable
from aegis_client.project import NOTES, Project, project_root, scan
from aegis_client.reporter import Reporter
from aegis_client.session import Session
from aegis_client.wish import Wish


@dataclass(frozen=True)
class BuildReport:
    """A build as it ended. output: the folder of what was fetched, None where nothing was."""

    job_id: str
    task: TaskInfo
    agent_id: str
    agent_name: str
    target: str
    environment: str
    toolchain: str
    sent_files: int
    sent_bytes: int
    output: Path | None = None
    files: tuple[Path, ...] = ()
    manifest: Manifest | None = None

    @property
    def error(self) -> AegisError | None:
        return failure(self.task)

    @property
    def result(self) -> BuildResult:
        return self.task.build or BuildResult()

    def as_json(self) -> dict[str, Any]:
        error = self.error
        return {
            "job_id": self.job_id,
            "task_id": self.task.task_id,
            "state": str(self.task.state),
            "agent_id": self.agent_id,
            "agent_name": self.agent_name,
            "target": self.target,
            "environment": self.environment,
            "toolchain": self.toolchain,
            "sent_files": self.sent_files,
            "sent_bytes": self.sent_bytes,
            **self.result.model_dump(mode="json"),
            "output": str(self.output) if self.output else None,
            "error": error.body().model_dump(mode="json") if error else None,
        }


@dataclass(frozen=True)
class ProjectBuild:
    """What to build and where to put it. output: a folder; by default inside the project."""

    folder: Path
    options: BuildOptions
    output: Path | None = None
    sizes: Callable[[], AsyncIterator[tuple[int, int]]] | None = None
    """Columns and rows of the viewer's terminal, each time they change."""


async def read_project(client: Client, folder: Path, reporter: Reporter) -> Project:
    """Read a project's files; what is wrong with them is said before anything is asked for."""
    root = project_root(folder)

    def progressed(files: int, size_bytes: int) -> None:
        if files % 100 == 0:
            reporter.progress("read", files, 0, f"{size_bytes >> 20} MiB")

    return await asyncio.to_thread(scan, root, client.store, progressed)


async def build_project(
    client: Client, wanted: ProjectBuild, wish: Wish, reporter: Reporter
) -> BuildReport:
    """
    Build in a session of its own, and fetch what a good build left.

    A failed build is returned; what kept it from being tried is raised.
    """
    project = await read_project(client, wanted.folder, reporter)
    async with client.session(replace(wish, project_key=project.id), reporter) as session:
        return await build_in(session, client, project, wanted, reporter)


async def detach_build(
    client: Client, wanted: ProjectBuild, wish: Wish, reporter: Reporter
) -> tuple[str, StartedBuild]:
    """Start a build and leave it to the agent; return the job's id and what was started."""
    project = await read_project(client, wanted.folder, reporter)
    async with client.session(replace(wish, project_key=project.id), reporter) as session:
        started = await start_build(session, project, wanted.options, client.records, reporter)
        session.keep_job = True
        return session.job_id, started


async def build_in(
    session: Session, client: Client, project: Project, wanted: ProjectBuild, reporter: Reporter
) -> BuildReport:
    """Build in a session that there is already."""
    started = await start_build(session, project, wanted.options, client.records, reporter)
    try:
        task = await follow_build(
            session,
            started.task_id,
            started.stream,
            client.records,
            reporter,
            wanted.sizes() if wanted.sizes else None,
        )
    except asyncio.CancelledError:
        # The build belongs to the one who asked for it: it does not outlive their Ctrl-C.
        await cancel_build(session, started.task_id)
        raise
    report = BuildReport(
        job_id=session.job_id,
        task=task,
        agent_id=session.agent.id,
        agent_name=session.agent.name,
        target=wanted.options.target,
        environment=started.environment,
        toolchain=started.toolchain,
        sent_files=started.uploaded.sent_files,
        sent_bytes=started.uploaded.sent_bytes,
    )
    if report.error is not None:
        return report
    output = output_folder(project.root, wanted.output, started.environment)
    return await fetched(session, client, report, output, reporter)


async def fetched(
    session: Session, client: Client, report: BuildReport, output: Path, reporter: Reporter
) -> BuildReport:
    """Fetch a good build's artifacts and verify the manifest that the agent signed."""
    files = await download(session, report.task.task_id, report.result.artifacts, output, reporter)
    manifest = await asyncio.to_thread(checked_manifest, output, session.agent.key)
    client.records.fetched(report.task.task_id, str(output), manifest)
    return replace(report, output=output, files=tuple(files), manifest=manifest)


def output_folder(root: Path, named: Path | None, environment: str) -> Path:
    """
    Where a build's artifacts go, made if need be: `named`, or `.aegis/firmware/ENVIRONMENT`.

    Raises OutputUnwritable.
    """
    folder = (
        named.expanduser().absolute() if named else None
    ) or root / NOTES / "firmware" / _plain(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if named is None and not folder.resolve().is_relative_to(root):
            raise OutputUnwritable(f"{folder} leads out of the project through a link")
    except OSError as exc:
        raise OutputUnwritable(f"{folder} can't be made: {exc.strerror}") from exc
    return folder


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "default"
