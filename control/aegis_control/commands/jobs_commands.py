"""`list-jobs` and `show-job`: what runs, what waits, and why."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer
from aegis_protocol.http_api.jobs import Job, JobList, Reason
from aegis_protocol.http_api.revocations import RevocationList, RevocationRow
from aegis_protocol.states import JobState

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.revoke_commands import how_far
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import ago, minute


class JobWithRevocations(Job):
    """What `show-job --json` prints."""

    revocations: tuple[RevocationRow, ...]


def list_jobs(
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only those in this state; several times.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 200,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show everybody's jobs, the newest first: whose, where, in which state and why."""
    wanted = f"&state={','.join(state)}" if state else ""
    found = Asking(url, key_file, state_dir).get(f"/jobs?limit={limit}{wanted}", JobList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.jobs:
        typer.echo("There is no such job." if state else "There is no job.")
        return
    print_table(
        ("ID", "STATE", "IDENTITY", "TARGET", "AGENT", "BOARDS", "MADE", "WHY"),
        [
            (
                job.id,
                str(job.state),
                job.identity,
                job.target or "",
                job.agent_name or job.agent_id or "",
                " ".join(job.boards),
                ago(job.created_at),
                _why(job),
            )
            for job in found.jobs
        ],
        whole=("ID", "STATE", "MADE"),
    )


def show_job(
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show one job: all that is known of it, with the reasons why it waits, agent by agent."""
    asking, quoted = Asking(url, key_file, state_dir), quote(job_id, safe="")
    job = asking.get(f"/jobs/{quoted}", Job)
    taken = asking.get(f"/services/revocations?job={quoted}", RevocationList).revocations
    if as_json:
        whole = JobWithRevocations(**dict(job), revocations=taken)
        typer.echo(whole.model_dump_json(indent=2))
        return
    rows = [
        ("id", job.id),
        ("state", str(job.state)),
        ("identity", job.identity),
        ("target", job.target or "none"),
        ("agent", f"{job.agent_name} ({job.agent_id})" if job.agent_id else "none"),
        ("boards", " ".join(job.boards) or "none"),
        ("attempt", str(job.attempt)),
        ("time limit", f"{job.timeout_secs} s"),
        ("made", minute(job.created_at)),
        ("changed", f"{minute(job.updated_at)} ({ago(job.updated_at)})"),
    ]
    if job.project_key:
        rows.append(("project", job.project_key))
    if job.error is not None:
        rows.append(("error", f"{job.error.get('message')} [{job.error.get('code')}]"))
    for row in taken:
        what = row.kind if row.kind == "job" else f"{row.kind} {row.id}"
        rows.append((f"{what} revoked", f"{minute(row.at)}, {how_far(row)}"))
    print_table(("WHAT", "IS"), rows, whole=("WHAT",))
    if job.reasons:
        typer.echo()
        print_table(
            ("WAITS FOR", "WHY", "AGENTS"),
            [(one.code, one.detail, _agents(one)) for one in job.reasons],
        )


def _why(job: Job) -> str:
    if job.error is not None:
        return str(job.error.get("code", ""))
    return "; ".join(_reason(reason) for reason in job.reasons)


def _reason(reason: Reason) -> str:
    who = _agents(reason)
    return f"{reason.code}: {reason.detail}" + (f" ({who})" if who else "")


def _agents(reason: Reason) -> str:
    return ", ".join(reason.agents) + (f" and {reason.more} more" if reason.more else "")
