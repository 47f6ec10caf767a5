"""Runs the real esptool, unchanged, in a process of its own, against a virtual board."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEADLINE_S: Final = 40.0

# What esptool needs to know of our URLs: one call, then its own main.
_WITH_URLS: Final = (
    "import sys; from aegis_agent import serial_urls; serial_urls.register(); "
    "import esptool; sys.argv[0] = 'esptool'; sys.exit(esptool._main())"
)
# A socket has no TIOCMSET, which esptool tries first on every port that isn't rfc2217.
_RESET_BY_LINES: Final = "[esptool]\ncustom_reset_sequence = D0|R1|W0.1|D1|R0|W0.05|D0\n"


@dataclass(frozen=True)
class EsptoolRun:
    code: int
    output: str


async def run_esptool(
    port: str,
    *arguments: str,
    folder: Path,
    extra_env: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> EsptoolRun:
    """
    Run `esptool --port PORT ARGUMENTS`; the caller's folder holds its configuration.

    Raises
    ------
    TimeoutError   it was not done within `deadline_s`; it was killed then
    """
    config = folder / "esptool.cfg"
    is_url = port.startswith("virtual:")
    config.write_text(_RESET_BY_LINES if is_url else "[esptool]\n")
    environment = {
        **os.environ,
        "ESPTOOL_CFGFILE": str(config),
        "NO_COLOR": "1",
        "COLUMNS": "200",
        **(extra_env or {}),
    }
    program = ["-c", _WITH_URLS] if is_url else ["-m", "esptool"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        "--port",
        port,
        *arguments,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(deadline_s):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return EsptoolRun(process.returncode or 0, output.decode(errors="replace"))
