"""What download and attach do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aegis_client import attach as attaching
from aegis_client.cli.build_work import shown
from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.cli.progress import LiveReporter, log_stream
from aegis_client.client import Client
from aegis_client.download_build import download_build, find_build, list_build
from aegis_client.exit_codes import ExitCode
from aegis_client.terminal import sizes


def list_artifacts(out: Output, name: str | None, agent: str | None, wait_s: float) -> ExitCode:
    async def work(client: Client) -> None:
        with LiveReporter(out, None) as reporter:
            wanted = find_build(client, name, agent)
            report = await list_build(client, wanted, wait_s, reporter)
        out.result(report.as_json())
        out.table(
            ["name", "kind", "bytes", "SHA-256"],
            [[a.name, a.kind, str(a.size_bytes), a.sha256] for a in report.artifacts],
        )

    return with_client(out, work)


def download(
    out: Output,
    name: str | None,
    agent: str | None,
    names: Sequence[str],
    output: Path | None,
    wait_s: float,
) -> ExitCode:
    async def work(client: Client) -> None:
        with LiveReporter(out, None) as reporter:
            wanted = find_build(client, name, agent)
            report = await download_build(client, wanted, names, output, wait_s, reporter)
        out.result(report.as_json())
        out.note(f"{len(report.files)} files of {report.task_id} from {report.agent_name}")
        out.line(str(report.output))

    return with_client(out, work)


def attach(
    out: Output, job: str | None, output: Path | None, wait_s: float, *, show: bool | None
) -> ExitCode:
    async def work(client: Client) -> ExitCode:
        record = None if job is None else client.records.find(job)
        if job is None:
            record = find_build(client, None, None).record
        job_id = record.job_id if record is not None else job or ""
        with LiveReporter(out, log_stream(out, show)) as reporter:
            report = await attaching.attach(client, job_id, output, wait_s, reporter, sizes())
        return shown(out, report)

    return with_client(out, work)
