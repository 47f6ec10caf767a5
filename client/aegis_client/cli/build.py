"""build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis_client.cli import options


def register(app: typer.Typer) -> None:
    app.command()(build)


def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder.")],
    target: options.Target,
    environment: options.Environment = None,
    agent: options.Agent = None,
    label: options.Labels = None,
    board: options.Boards = None,
    output: options.OutputDir = None,
    clean: Annotated[bool, typer.Option("--clean", help="Build from scratch.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every command.")] = False,
    toolchain: Annotated[
        str | None, typer.Option("--toolchain", metavar="KIND", help="platformio or esp-idf.")
    ] = None,
    timeout: options.JobTimeout = 600,
    wait: options.Wait = 300,
    cpu_cores: options.CpuCores = 1.0,
    memory_mb: options.MemoryMb = 1024,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it and leave; `espctl attach JOB` comes back.")
    ] = False,
    show: options.Terminal = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Build a project on an agent, watch its terminal, and fetch the firmware."""
    from aegis_client.build import BuildOptions
    from aegis_client.build_project import ProjectBuild
    from aegis_client.cli import build_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import board_wishes, chip, identifier, labels, toolchain_wish
    from aegis_client.needs import BUILD, START_BUILD
    from aegis_client.terminal import sizes, terminal
    from aegis_client.wish import Wish

    kind = toolchain_wish(toolchain)
    target = chip(target)
    wanted = ProjectBuild(
        folder,
        BuildOptions(
            target=target,
            environment=environment,
            toolchain=kind.kind if kind else None,
            clean=clean,
            verbose=verbose,
            terminal=terminal(),
        ),
        output,
        sizes,
    )

    wish = Wish(
        needs=START_BUILD if detach else BUILD,
        timeout_s=timeout,
        wait_s=wait,
        target=target,
        toolchain=kind,
        agent=identifier(agent, "--agent"),
        labels=labels(label),
        boards=board_wishes(board),
        cpu_cores=cpu_cores,
        memory_mb=memory_mb,
    )
    out = Output(json=as_json, quiet=quiet)
    if detach:
        return build_work.detach(out, wanted, wish)
    return build_work.build(out, wanted, wish, show=show)
