"""download, attach."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_client.cli import options


def register(app: typer.Typer) -> None:
    app.command()(download)
    app.command()(attach)


def download(
    build: Annotated[
        str | None,
        typer.Argument(metavar="[JOB|TASK]", help="By default the last build of this folder."),
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List what there is.")] = False,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAME", help="Only this one; repeatable.")
    ] = None,
    output: options.OutputDir = None,
    agent: options.Agent = None,
    wait: options.Wait = 60,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Fetch the artifacts of an earlier build; a cut download goes on where it stopped."""
    from aegis_client.cli import artifacts_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import identifier

    out = Output(json=as_json, quiet=quiet)
    task, where = identifier(build, "JOB"), identifier(agent, "--agent")
    if only_list:
        return artifacts_work.list_artifacts(out, task, where, wait)
    return artifacts_work.download(out, task, where, name or (), output, wait)


def attach(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="By default the last one of this folder."),
    ] = None,
    output: options.OutputDir = None,
    wait: options.Wait = 60,
    show: options.Terminal = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Go back to a build, watch it from its beginning, fetch the firmware. Ctrl-C only leaves."""
    from aegis_client.cli import artifacts_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import identifier

    out = Output(json=as_json, quiet=quiet)
    return artifacts_work.attach(out, identifier(job, "JOB"), output, wait, show=show)
