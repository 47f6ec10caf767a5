"""flash, monitor, run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aegis_client.cli import options


class Eol(StrEnum):
    CR = "cr"
    LF = "lf"
    CRLF = "crlf"


Expect = Annotated[
    str | None, typer.Option("--expect", metavar="REGEX", help="End well when this was seen.")
]
Fail = Annotated[
    list[str] | None,
    typer.Option("--fail", metavar="REGEX", help="End badly when this was seen; repeatable."),
]
LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Keep the console's bytes.")
]
Stamps = Annotated[bool, typer.Option("--timestamps", help="The time before each line.")]
EraseAll = Annotated[bool, typer.Option("--erase-all", help="Erase the whole flash first.")]
WatchTimeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.1, max=86_400, metavar="S", help="Watch for so many seconds."),
]


def register(app: typer.Typer) -> None:
    app.command()(flash)
    app.command()(monitor)
    app.command()(run)


def flash(
    firmware: Annotated[
        Path | None,
        typer.Argument(
            metavar="[WHAT]",
            help="A bundle, the output of a build, or a project's folder; by default this one.",
        ),
    ] = None,
    build: Annotated[
        str | None,
        typer.Option("--build", metavar="TASK", help="This build, as kept on its agent."),
    ] = None,
    board: options.Board = None,
    chip: options.Chip = None,
    label: options.Labels = None,
    agent: options.Agent = None,
    baud: Annotated[
        int, typer.Option("--baud", min=9600, max=4_000_000, help="Speed while flashing.")
    ] = 460_800,
    erase_all: EraseAll = False,
    timeout: options.JobTimeout = 600,
    wait: options.Wait = 300,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Write firmware to a board and verify it."""
    from aegis_client.cli import boards_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import board_wish, identifier
    from aegis_client.flash import FlashOptions

    return boards_work.flash(
        Output(json=as_json, quiet=quiet),
        firmware,
        identifier(build, "--build"),
        board_wish(board, chip, label),
        FlashOptions(baud=baud, erase_all=erase_all),
        agent=identifier(agent, "--agent"),
        timeout_s=timeout,
        wait_s=wait,
    )


def monitor(
    board: options.Board = None,
    chip: options.Chip = None,
    label: options.Labels = None,
    agent: options.Agent = None,
    expect: Expect = None,
    fail: Fail = None,
    timeout: WatchTimeout = None,
    reset: Annotated[bool, typer.Option("--reset", help="Reset the board first.")] = False,
    baud: options.ConsoleBaud = 115_200,
    log: LogFile = None,
    timestamps: Stamps = False,
    eol: Annotated[Eol, typer.Option("--eol", help="What Enter sends.")] = Eol.CRLF,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Type what a pipe on standard input gives.")
    ] = False,
    wait: options.Wait = 300,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Watch a board's console, and type at it. Ctrl-] or Ctrl-C leaves."""
    from aegis_client.cli import boards_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import board_wish, identifier
    from aegis_client.monitor import MonitorOptions

    return boards_work.monitor(
        Output(json=as_json, quiet=quiet),
        board_wish(board, chip, label),
        MonitorOptions(
            baud=baud,
            reset=reset,
            expect=expect,
            fail=tuple(fail or ()),
            timeout_s=timeout,
            log=log,
        ),
        agent=identifier(agent, "--agent"),
        wait_s=wait,
        timestamps=timestamps,
        eol=eol,
        stdin=stdin,
    )


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder.")],
    target: options.Target,
    expect: Expect = None,
    fail: Fail = None,
    timeout: WatchTimeout = 60,
    environment: options.Environment = None,
    board: options.Board = None,
    label: options.Labels = None,
    agent: options.Agent = None,
    output: options.OutputDir = None,
    clean: Annotated[bool, typer.Option("--clean", help="Build from scratch.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every command.")] = False,
    baud: options.ConsoleBaud = 115_200,
    flash_baud: options.FlashBaud = 460_800,
    erase_all: EraseAll = False,
    log: LogFile = None,
    timestamps: Stamps = False,
    job_timeout: Annotated[
        int, typer.Option("--job-timeout", min=1, max=86_400, metavar="S", help="For all of it.")
    ] = 1200,
    wait: options.Wait = 300,
    cpu_cores: options.CpuCores = 1.0,
    memory_mb: options.MemoryMb = 1024,
    show: options.Terminal = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Build, flash and watch, and prove that the board runs what was built."""
    from aegis_client.build import BuildOptions
    from aegis_client.build_project import ProjectBuild
    from aegis_client.cli import boards_work
    from aegis_client.cli.output import Output
    from aegis_client.cli.wishes import board_wish, identifier
    from aegis_client.cli.wishes import chip as chip_name
    from aegis_client.flash import FlashOptions
    from aegis_client.monitor import MonitorOptions
    from aegis_client.needs import RUN
    from aegis_client.terminal import sizes, terminal
    from aegis_client.wish import Wish

    chip = chip_name(target)
    options_ = BuildOptions(
        target=chip, environment=environment, clean=clean, verbose=verbose, terminal=terminal()
    )
    wish = Wish(
        needs=RUN,
        timeout_s=job_timeout,
        wait_s=wait,
        target=chip,
        agent=identifier(agent, "--agent"),
        boards=(board_wish(board, None if board else chip, label),),
        cpu_cores=cpu_cores,
        memory_mb=memory_mb,
    )
    return boards_work.run(
        Output(json=as_json, quiet=quiet),
        ProjectBuild(folder, options_, output, sizes),
        FlashOptions(baud=flash_baud, erase_all=erase_all),
        MonitorOptions(
            baud=baud, expect=expect, fail=tuple(fail or ()), timeout_s=timeout, log=log
        ),
        wish,
        timestamps=timestamps,
        show=show,
    )
