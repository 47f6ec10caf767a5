"""The sandbox of one agent: whether it works here, and processes in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import Final

from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.failures.build import SandboxUnavailable

from aegis_agent.sandbox import process
from aegis_agent.sandbox.diagnosis import explained
from aegis_agent.sandbox.process import SandboxProcess
from aegis_agent.sandbox.spec import SandboxSpec
from aegis_agent.source.layout import Owner

BWRAP_PATH: Final = "/usr/bin:/bin:/usr/local/bin"
_CHECK_S: Final = 20.0


@dataclass(frozen=True)
class Captured:
    """What a process without a terminal said, each stream cut at its bound."""

    status: int
    stdout: bytes
    stderr: bytes


class Sandbox:
    """
    uid_base  builds of slot n run as this uid + n, when the agent is root; else as the agent
    network   whether builds reach the network
    """

    def __init__(self, *, uid_base: int = 65_100, network: bool = False) -> None:
        self.network = network
        self._uid_base = uid_base
        self._as_root = os.geteuid() == 0

    def owner(self, slot: int) -> Owner | None:
        """Who a build of `slot` runs as; None: as this process's own user."""
        uid = self._uid_base + slot
        return Owner(uid, uid) if self._as_root else None

    async def check(self) -> None:
        """Make a sandbox and leave it. Raises SandboxUnavailable with the exact remedy."""
        spec = SandboxSpec(argv=("true",), env={"PATH": "/usr/bin:/bin"}, slot=0)
        await self.capture(spec, deadline_s=_CHECK_S)

    async def start(self, spec: SandboxSpec, *, terminal_fd: int) -> SandboxProcess:
        """Start `spec` on the terminal whose slave side is `terminal_fd`."""
        owner = self.owner(spec.slot)
        if owner is not None:
            os.fchown(terminal_fd, owner.uid, owner.gid)
        return await self._start(spec, terminal_fd, terminal_fd, terminal_fd)

    async def capture(
        self, spec: SandboxSpec, *, deadline_s: float, at_most_bytes: int = 1 << 20
    ) -> Captured:
        """
        Run `spec` without a terminal and return what it said.

        Raises TimeoutError at the deadline, SandboxUnavailable. Nothing of it is left either way.
        """
        with contextlib.ExitStack() as fds:
            out, err = _Pipe(fds), _Pipe(fds)
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            fds.callback(os.close, nothing)
            try:
                started = await self._start(spec, nothing, out.write_end, err.write_end)
            except SandboxUnavailable as exc:
                err.close_write_end()
                raise explained(exc, await err.read(65_536)) from exc
            out.close_write_end()
            err.close_write_end()
            try:
                async with asyncio.timeout(deadline_s):
                    said = await asyncio.gather(out.read(at_most_bytes), err.read(65_536))
                    return Captured(await started.wait(), *said)
            except SandboxUnavailable as exc:
                raise explained(exc, said[1]) from exc
            except BaseException:
                await uninterrupted(started.kill())
                raise

    async def _start(
        self, spec: SandboxSpec, stdin: int, stdout: int, stderr: int
    ) -> SandboxProcess:
        bwrap = shutil.which("bwrap", path=BWRAP_PATH)
        if bwrap is None:
            raise SandboxUnavailable(
                "bubblewrap is not installed on this agent",
                remedy="On the agent, on Debian or Ubuntu: apt-get install bubblewrap",
            )
        return await process.start(
            spec,
            bwrap=bwrap,
            owner=self.owner(spec.slot),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )


class _Pipe:
    """A pipe of which the child has one end, closed with `fds`."""

    def __init__(self, fds: contextlib.ExitStack) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        fds.callback(os.close, self._read_end)
        fds.callback(self.close_write_end)

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def read(self, at_most_bytes: int) -> bytes:
        """Read to the end; what is beyond `at_most_bytes` is thrown away."""
        kept = bytearray()
        while True:
            try:
                data = os.read(self._read_end, 65_536)
            except BlockingIOError:
                await process.readable(self._read_end, deadline_s=3600)
                continue
            if not data:
                return bytes(kept)
            kept += data[: max(0, at_most_bytes - len(kept))]
