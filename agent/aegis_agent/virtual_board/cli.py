"""`aegis-agent virtual-board`: becomes the process that is one board."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def virtual_board_command(
    chip: Annotated[str, typer.Option(help="esp32, esp32p4, esp32c3 or esp32c6.")] = "esp32p4",
    listen: Annotated[
        Path | None, typer.Option(help="Path of the socket behind its virtual:// URL.")
    ] = None,
    pty: Annotated[
        Path | None,
        typer.Option(metavar="LINK", help="Offer a pty behind this link, for any serial program."),
    ] = None,
    flash_file: Annotated[
        Path | None, typer.Option(help="Keep the flash (and so the board's MAC) in this file.")
    ] = None,
    flash_size: Annotated[str | None, typer.Option(help="Such as 4MB or 16MB.")] = None,
    mac: Annotated[str | None, typer.Option(help="Such as 02:ae:00:00:00:01.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the chip, such as 1.3.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:NUMBER]",
            help="Let something go wrong: no-stub-greeting, bad-md5, write-error[:bytes], "
            "unplug-after:bytes, replug-after:seconds, vanish-on-reset[:seconds].",
        ),
    ] = None,
    pace: Annotated[bool, typer.Option("--pace", help="As slow as a wire at its rate.")] = False,
    cpu_budget: Annotated[
        float, typer.Option(help="Part of one core that the firmware may take.")
    ] = 0.5,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON line when it is ready, errors as JSON.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
) -> None:
    """Be a board without hardware, until Ctrl-C: esptool flashes it, and it runs what it got."""
    argv = [sys.executable, "-m", "aegis_agent.virtual_board", "--chip", chip]
    for name, value in (
        ("--listen", listen),
        ("--pty", pty),
        ("--flash-file", flash_file),
        ("--flash-size", flash_size),
        ("--mac", mac),
        ("--revision", revision),
        ("--cpu-budget", cpu_budget),
    ):
        if value is not None:
            argv.append(f"{name}={value}")
    argv += [f"--fault={text}" for text in fault or ()]
    argv += ["--pace"] * pace + ["--json"] * json + ["--verbose"] * verbose
    sys.stdout.flush()
    # The same process from here on: signals reach it as they are, and it is a program apart.
    os.execv(sys.executable, argv)  # noqa: S606
