"""Artifacts of a build that has ended, from the agent that keeps them, in a job of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_protocol.failures.build import ArtifactMissing, TaskNotFound
from aegis_protocol.manifest import Artifact

from aegis_client.artifacts import MANIFEST, checked_manifest, download, list_artifacts
from aegis_client.build_project import output_folder
from aegis_client.client import Client
from aegis_client.failures import NoEarlierBuild
from aegis_client.needs import DOWNLOAD
from aegis_client.project import project_root
from aegis_client.records import TaskRecord
from aegis_client.reporter import Reporter
from aegis_client.wish import Wish

JOB_S: Final = 900


@dataclass(frozen=True)
class Wanted:
    """A build: the task, the agent that keeps it, and where it was built from, if known."""

    task_id: str
    agent: str
    record: TaskRecord | None = None


@dataclass(frozen=True)
class DownloadReport:
    """files: None where they were only listed."""

    task_id: str
    agent_name: str
    artifacts: tuple[Artifact, ...]
    output: Path | None = None
    files: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "agent_name": self.agent_name,
            "artifacts": [artifact.model_dump(mode="json") for artifact in self.artifacts],
            "output": str(self.output) if self.output else None,
            "files": [str(path) for path in self.files],
        }


def find_build(client: Client, name: str | None, agent: str | None) -> Wanted:
    """
    Return the build that `name` (a task or job) means; None: the last of this folder.

    agent  has to be given for a task that this client did not start

    Raises NoEarlierBuild, TaskNotFound.
    """
    if name is None:
        root = str(project_root(Path()))
        record = client.records.last_build(root) or client.records.last_build(None)
        if record is None:
            raise NoEarlierBuild("this client has not built anything yet")
        return Wanted(record.task_id, record.agent_id, record)
    record = client.records.find(name)
    if record is not None:
        return Wanted(record.task_id, record.agent_id, record)
    if agent is None:
        raise TaskNotFound(
            f"this client did not start {name}",
            remedy="`espctl jobs` lists what it started; for another's task say which `--agent`.",
        )
    return Wanted(name, agent)


async def list_build(
    client: Client, wanted: Wanted, wait_s: float, reporter: Reporter
) -> DownloadReport:
    """List what the agent keeps of a build."""
    async with client.session(_wish(wanted, wait_s), reporter) as session:
        artifacts = await list_artifacts(session, wanted.task_id)
        return DownloadReport(wanted.task_id, session.agent.name, artifacts)


async def download_build(
    client: Client,
    wanted: Wanted,
    names: Sequence[str],
    output: Path | None,
    wait_s: float,
    reporter: Reporter,
) -> DownloadReport:
    """
    Fetch a build's artifacts: those of `names`, or all of them; the manifest's signature is
    verified when everything was fetched.

    Raises ArtifactMissing for a name that there is not.
    """
    async with client.session(_wish(wanted, wait_s), reporter) as session:
        there = await list_artifacts(session, wanted.task_id)
        missing = set(names) - {artifact.name for artifact in there}
        if missing:
            raise ArtifactMissing(f"the build has no {', '.join(sorted(missing))}")
        chosen = tuple(a for a in there if not names or a.name in names)
        folder = _folder(wanted, output)
        files = await download(session, wanted.task_id, chosen, folder, reporter)
        if any(artifact.name == MANIFEST for artifact in chosen) and not names:
            manifest = await asyncio.to_thread(checked_manifest, folder, session.agent.key)
            client.records.fetched(wanted.task_id, str(folder), manifest)
        return DownloadReport(wanted.task_id, session.agent.name, chosen, folder, tuple(files))


def _wish(wanted: Wanted, wait_s: float) -> Wish:
    return Wish(needs=DOWNLOAD, agent=wanted.agent, timeout_s=JOB_S, wait_s=wait_s)


def _folder(wanted: Wanted, output: Path | None) -> Path:
    record = wanted.record
    if output is None and record is not None and record.project_dir:
        root = Path(record.project_dir)
        if root.is_dir():
            return output_folder(root, None, record.environment)
    return output_folder(Path.cwd(), output or Path(f"firmware-{wanted.task_id}"), "")
