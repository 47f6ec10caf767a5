"""Running `aegis-control`: as a process, in a thread, and `serve` until the test is over."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aegis_control import cli

WITHIN_S = 60.0


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


async def run(folder: Path, *words: str, stdin: bytes | None = None, **environment: str) -> Ended:
    """Run `aegis-control` as a process with an environment of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aegis_control", *words),
        env=_environment(folder, environment),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WITHIN_S):
        out, err = await process.communicate(stdin)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def call(folder: Path, *words: str, **environment: str) -> Ended:
    """Run the same in a thread of this process, which is much sooner done."""

    def called() -> Ended:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        return Ended(code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aegis-control", *words])
        for name, value in _environment(folder, environment).items():
            patch.setenv(name, value)
        async with asyncio.timeout(WITHIN_S):
            return await asyncio.to_thread(called)


def _environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    ordinary = {"PATH": os.environ["PATH"], "HOME": str(folder), "COLUMNS": "200"}
    return {
        **ordinary,
        "AEGIS_STATE_DIR": str(folder / "s"),
        "AEGIS_CONFIG_DIR": str(folder / "etc"),
        **more,
    }


@dataclass
class Serving:
    process: asyncio.subprocess.Process
    base_url: str
    lines: list[str]


@asynccontextmanager
async def served(folder: Path, **environment: str) -> AsyncIterator[Serving]:
    """A control in a process of its own, on a free port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aegis_control", "serve", "--listen", "127.0.0.1:0"),
        env=_environment(folder, environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(WITHIN_S):
            while not any("operator key" in line or "state:" in line for line in lines):
                line = (await process.stdout.readline()).decode().strip()
                assert line, (lines, await process.communicate())
                lines.append(line)
        yield Serving(process, lines[0].split()[-1], lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
