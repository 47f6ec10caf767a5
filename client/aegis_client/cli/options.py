"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress, no log.")]
Agent = Annotated[
    str | None, typer.Option("--agent", metavar="NAME", help="This agent, by name or id.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="K=V", help="An agent or board with this label; repeatable."),
]
Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="S", help="Seconds to wait for a free agent.")
]
JobTimeout = Annotated[
    int, typer.Option("--timeout", min=1, max=86_400, metavar="S", help="Seconds for the job.")
]
Target = Annotated[
    str, typer.Option("--target", "-t", metavar="CHIP", help="esp32, esp32p4, esp32c3, …")
]
Environment = Annotated[
    str | None,
    typer.Option("--env", "-e", metavar="E", help="The environment of platformio.ini."),
]
Board = Annotated[
    str | None, typer.Option("--board", metavar="ID", help="This board; see `espctl boards`.")
]
Boards = Annotated[
    list[str] | None,
    typer.Option("--board", metavar="ID", help="Hold this board too; repeatable."),
]
Chip = Annotated[str | None, typer.Option("--chip", metavar="CHIP", help="Any board of this chip.")]
OutputDir = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Where the artifacts go."),
]
CpuCores = Annotated[float, typer.Option("--cpu-cores", min=0.1, max=1024, metavar="N")]
MemoryMb = Annotated[int, typer.Option("--memory-mb", min=16, max=1 << 24, metavar="N")]
FlashBaud = Annotated[
    int, typer.Option("--flash-baud", min=9600, max=4_000_000, help="Speed while flashing.")
]
ConsoleBaud = Annotated[
    int, typer.Option("--baud", min=300, max=4_000_000, help="Speed of the board's console.")
]
Terminal = Annotated[
    bool | None,
    typer.Option(
        "--terminal/--no-terminal", help="Show the build's terminal (with --json: on stderr)."
    ),
]
