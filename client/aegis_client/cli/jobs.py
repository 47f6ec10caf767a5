"""jobs, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_client.cli import options


def register(app: typer.Typer) -> None:
    app.command()(jobs)
    app.command()(cancel)


def jobs(as_json: options.Json = False) -> int:
    """Show your jobs, why one waits, and what this machine built in them."""
    from aegis_client.cli import jobs_work

    return jobs_work.jobs(as_json=as_json)


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job, or a task of it.")],
    as_json: options.Json = False,
) -> int:
    """Cancel a job: what it runs on the agent is killed."""
    from aegis_client.cli import jobs_work
    from aegis_client.cli.wishes import identifier

    return jobs_work.cancel(identifier(job, "JOB") or "", as_json=as_json)
