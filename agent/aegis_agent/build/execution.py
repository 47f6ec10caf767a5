"""A command of a build from start to end, watched: time, silence, the disk."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_protocol.failures.build import BuildSilent
from aegis_protocol.failures.source import DiskFull

from aegis_agent.build.terminal import BuildTerminal
from aegis_agent.sandbox import Sandbox, SandboxProcess, SandboxSpec, uninterrupted

_LOOK_EVERY_S: Final = 1.0
_DRAIN_S: Final = 5.0
_FLOOR_BYTES: Final = 512 << 20
_FLOOR_SHARE: Final = 0.02


@dataclass
class Heard:
    """When the build was heard last, on the event loop's clock."""

    at: float


async def execute(
    sandbox: Sandbox,
    spec: SandboxSpec,
    terminal: BuildTerminal,
    *,
    heard: Heard,
    silence_s: float,
    disk: Path,
) -> int:
    """
    Run `spec` on `terminal` and return its status, with all of its output taken.

    disk  a folder on the file system that must not become full

    Canceled or failing, it is dead before this returns. Raises BuildSilent, DiskFull,
    SandboxUnavailable.
    """
    process = await sandbox.start(spec, terminal_fd=terminal.slave_fd)
    try:
        terminal.close_slave()
        status = await _watched(process, heard, silence_s, disk)
    except BaseException:
        await uninterrupted(process.kill())
        raise
    await terminal.drained(deadline_s=_DRAIN_S)
    return status


async def _watched(process: SandboxProcess, heard: Heard, silence_s: float, disk: Path) -> int:
    loop = asyncio.get_running_loop()
    while True:
        quiet_s = loop.time() - heard.at
        try:
            async with asyncio.timeout(max(0.01, min(_LOOK_EVERY_S, silence_s - quiet_s))):
                return await process.wait()
        except TimeoutError:
            if loop.time() - heard.at >= silence_s:
                raise BuildSilent(f"the build printed nothing for {silence_s:g} s") from None
            _check_disk(disk)


def _check_disk(folder: Path) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < min(_FLOOR_BYTES, _FLOOR_SHARE * disk.f_blocks * disk.f_frsize):
        raise DiskFull(f"the build filled the agent's disk: {free} bytes are left", free_bytes=free)
    # Some file systems count no inodes (Btrfs): then there are none to run out of.
    if disk.f_files and disk.f_favail < _FLOOR_SHARE * disk.f_files:
        raise DiskFull(
            f"the build used up the agent's inodes: {disk.f_favail} are left",
            free_inodes=disk.f_favail,
        )
