"""
One sandboxed process from start to end, and that nothing of it is left then.

    agent -> launch.py, which becomes bwrap -> pid 1 of a pid namespace -> the build

The kernel kills a pid namespace with its pid 1, and pid 1 is reaped only after all others in it:
a pidfd of it that is ready is the proof that no process remains. It dies with bwrap, which dies
with the agent (PR_SET_PDEATHSIG: with the thread that started it, here the event loop's).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog
from aegis_protocol.failures.build import SandboxUnavailable

from aegis_agent.sandbox.spec import GROUP, PASSWD, SandboxSpec, bwrap_options, command
from aegis_agent.sandbox.uninterrupted import uninterrupted
from aegis_agent.source.layout import Owner

log = structlog.get_logger()

_START_S: Final = 20.0
_GONE_S: Final = 10.0
_STATUS_BYTES: Final = 65_536
_LAUNCHER: Final = Path(__file__).with_name("launch.py")


class SandboxProcess:
    """
    A process in a sandbox. Who starts it awaits `wait` or `kill`.

    status  its exit status (128 + signal when killed), None as long as it runs
    """

    def __init__(
        self, process: asyncio.subprocess.Process, init_fd: int, reports: _Reports
    ) -> None:
        self.process = process
        self.status: int | None = None
        self._init_fd: int | None = init_fd
        self._reports = reports

    async def wait(self) -> int:
        """
        Wait for its end, and that of all that it started; return the status.

        Raises SandboxUnavailable when bubblewrap itself failed.
        """
        returncode = await self.process.wait()
        await self._nothing_left()
        if self.status is None:
            self.status = await self._reports.number("exit-code", deadline_s=1.0)
        self._close()
        if self.status is None and returncode > 0:
            raise SandboxUnavailable("bubblewrap could not make the sandbox", status=returncode)
        if self.status is None:
            self.status = 128 - returncode
        return self.status

    async def kill(self) -> None:
        """Kill all of it, and return when nothing is left."""
        if self._init_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._nothing_left()
        self._close()

    async def _nothing_left(self) -> None:
        if self._init_fd is None:
            return
        # bwrap may end before pid 1 does, where something detached is left in the sandbox.
        if not await readable(self._init_fd, deadline_s=0):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
            if not await readable(self._init_fd, deadline_s=_GONE_S):
                log.error("sandbox.not_ended", pid=self.process.pid, deadline_s=_GONE_S)

    def _close(self) -> None:
        self._reports.close()
        if self._init_fd is not None:
            os.close(self._init_fd)
            self._init_fd = None


class _Reports:
    """The objects that bubblewrap writes to its status descriptor, one in a line."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._raw = b""
        os.set_blocking(fd, False)

    async def number(self, name: str, *, deadline_s: float) -> int | None:
        """Wait for the report with `name`; None when it does not come."""
        ends = asyncio.get_running_loop().time() + deadline_s
        while True:
            for line in self._raw.splitlines():
                with contextlib.suppress(ValueError):
                    value = json.loads(line).get(name)
                    if isinstance(value, int):
                        return value
            left = ends - asyncio.get_running_loop().time()
            if self._fd is None or len(self._raw) > _STATUS_BYTES:
                return None
            if not await readable(self._fd, deadline_s=max(0.0, left)):
                return None
            more = os.read(self._fd, 4096)
            if not more:
                self.close()
            self._raw += more

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


async def start(
    spec: SandboxSpec,
    *,
    bwrap: str,
    owner: Owner | None,
    stdin: int,
    stdout: int,
    stderr: int,
) -> SandboxProcess:
    """
    Start `spec`. owner: the build's user, when this process is root.

    Raises SandboxUnavailable; nothing is left then.
    """
    with contextlib.ExitStack() as fds:
        status_read, status_write = os.pipe()
        fds.callback(os.close, status_write)
        reports = _Reports(status_read)
        passwd, group = _memory(fds, PASSWD.encode()), _memory(fds, GROUP.encode())
        words = bwrap_options(
            spec,
            staged=owner is not None,
            status_fd=status_write,
            passwd_fd=passwd,
            group_fd=group,
        )
        args = _memory(fds, b"".join(os.fsencode(word) + b"\0" for word in words))
        order = _memory(fds, json.dumps(_order(spec, bwrap, owner, args)).encode())
        process = await _spawn(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(order)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(status_write, passwd, group, args, order),
        )
    try:
        init = await reports.number("child-pid", deadline_s=_START_S)
        init_fd = None if init is None else os.pidfd_open(init)
    except ProcessLookupError:
        init_fd = None
    except BaseException:
        # Killed before it has made its sandbox, or with it: pid 1 dies with bwrap.
        reports.close()
        await uninterrupted(_killed(process))
        raise
    if init_fd is None:
        reports.close()
        await _killed(process)
        raise SandboxUnavailable("bubblewrap could not make the sandbox")
    return SandboxProcess(process, init_fd, reports)


async def readable(fd: int, *, deadline_s: float) -> bool:
    """Wait until `fd` has something, or is at its end; False when that takes too long."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def answer() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, answer)
    try:
        async with asyncio.timeout(deadline_s or 0.001):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


async def _spawn(argv: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
    environment: Mapping[str, str] = {"PATH": "/usr/bin:/bin"}
    return await asyncio.create_subprocess_exec(
        *argv, env=environment, start_new_session=True, close_fds=True, **options
    )


async def _killed(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _order(spec: SandboxSpec, bwrap: str, owner: Owner | None, args_fd: int) -> dict[str, Any]:
    return {
        "parent": os.getpid(),
        "uid": owner.uid if owner else None,
        "gid": owner.gid if owner else None,
        "mounts": [[str(mount.source), str(n)] for n, mount in enumerate(spec.mounts)],
        "limits": asdict(spec.limits),
        "bwrap": bwrap,
        "args_fd": args_fd,
        "command": command(spec),
    }


def _memory(fds: contextlib.ExitStack, content: bytes) -> int:
    """A descriptor from which `content` is read, closed with `fds`."""
    fd = os.memfd_create("aegis")
    fds.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
