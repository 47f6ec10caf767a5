"""What jobs and cancel do."""

from __future__ import annotations

import time

from aegis_protocol.http_api.jobs import Job
from aegis_protocol.states import JobState

from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.client import Client
from aegis_client.exit_codes import ExitCode
from aegis_client.records import TaskRecord


def jobs(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        found = (await client.control.jobs()).jobs
        mine: dict[str, list[TaskRecord]] = {}
        for record in client.records.all():
            mine.setdefault(record.job_id, []).append(record)
        out.result(
            {
                "jobs": [
                    {
                        **job.model_dump(mode="json"),
                        "tasks": [r.model_dump(mode="json") for r in mine.get(job.id, [])],
                    }
                    for job in found
                ]
            }
        )
        out.table(
            ["job", "state", "target", "agent", "since", "tasks of this machine"],
            [
                [
                    job.id,
                    _state(job),
                    job.target or "",
                    job.agent_name or "",
                    time.strftime("%m-%d %H:%M:%S", time.localtime(job.created_at)),
                    "\n".join(f"{r.kind} {r.task_id} {r.state}" for r in mine.get(job.id, [])),
                ]
                for job in found
            ],
        )

    return with_client(out, work)


def cancel(name: str, *, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        record = client.records.find(name)
        job_id = record.job_id if record is not None else name
        await client.control.cancel_job(job_id)
        out.result({"job_id": job_id, "state": str(JobState.CANCELED)})
        out.line(f"{job_id} is canceled")

    return with_client(out, work)


def _state(job: Job) -> str:
    if job.state is JobState.PENDING and job.reasons:
        return "\n".join([f"{job.state}:", *map(str, job.reasons)])
    if job.error is not None:
        return f"{job.state}: {job.error.get('message', '')}"
    return str(job.state)
