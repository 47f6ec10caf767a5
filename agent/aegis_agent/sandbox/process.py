"""
One sandboxed process from start to end, and that nothing of it is left then.

    agent -> launch.py, the guard -> bwrap -> pid 1 of a pid namespace -> the build

The kernel kills a pid namespace with its pid 1. The guard ends only when all of this has ended, and
ends all of it when the agent lets go of its pipe: by `kill`, or by dying.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.failures.build import SandboxUnavailable

from aegis_agent.sandbox.spec import GROUP, PASSWD, SandboxSpec, bwrap_options, command
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

    def __init__(self, guard: asyncio.subprocess.Process, life_fd: int, reports: _Reports) -> None:
        self.status: int | None = None
        self._guard = guard
        self._life_fd: int | None = life_fd
        self._reports = reports

    async def wait(self) -> int:
        """
        Wait for its end, and that of all that it started; return the status.

        Raises SandboxUnavailable when bubblewrap itself failed.
        """
        returncode = await self._guard.wait()
        if self.status is None:
            # Not written when bubblewrap was killed, or failed before the command ran.
            self.status = await self._reports.number("exit-code", deadline_s=1.0)
        self._close()
        if self.status is None:
            if 0 < returncode < 128:
                raise SandboxUnavailable("bubblewrap could not make the sandbox", status=returncode)
            self.status = abs(returncode)
        return self.status

    async def kill(self) -> None:
        """Kill all of it, and return when nothing is left."""
        self._let_go()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S):
                await self._guard.wait()
        if self._guard.returncode is None:
            log.error("sandbox.not_ended", pid=self._guard.pid, deadline_s=_GONE_S)
            with contextlib.suppress(ProcessLookupError):
                self._guard.kill()
        self._close()

    async def started(self) -> bool:
        """Wait until the sandbox is made; False when it can't be."""
        return await self._reports.number("child-pid", deadline_s=_START_S) is not None

    def _let_go(self) -> None:
        if self._life_fd is not None:
            os.close(self._life_fd)
            self._life_fd = None

    def _close(self) -> None:
        self._let_go()
        self._reports.close()


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
    canceled: asyncio.CancelledError | None = None
    spawning = asyncio.ensure_future(_spawned(spec, bwrap, owner, (stdin, stdout, stderr)))
    while not spawning.done():
        try:
            await asyncio.wait([spawning])
        except asyncio.CancelledError as exc:
            # Half spawned nobody could end it.
            canceled = exc
    started = spawning.result()
    made = False
    try:
        made = canceled is None and await started.started()
    finally:
        if not made:
            await uninterrupted(started.kill())
    if canceled is not None:
        raise canceled
    if not made:
        raise SandboxUnavailable("bubblewrap could not make the sandbox")
    return started


async def _spawned(
    spec: SandboxSpec, bwrap: str, owner: Owner | None, streams: tuple[int, int, int]
) -> SandboxProcess:
    """Start the guard. Each descriptor that it inherits is one that it was given here."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        status_read, status_write = os.pipe()
        ours.callback(os.close, status_read)
        theirs.callback(os.close, status_write)
        life_read, life_write = os.pipe()
        ours.callback(os.close, life_write)
        theirs.callback(os.close, life_read)
        passwd, group = _memory(theirs, PASSWD.encode()), _memory(theirs, GROUP.encode())
        options = bwrap_options(
            spec,
            staged=owner is not None,
            status_fd=status_write,
            passwd_fd=passwd,
            group_fd=group,
        )
        args = _memory(theirs, b"".join(os.fsencode(word) + b"\0" for word in options))
        order = _memory(theirs, json.dumps(_order(spec, bwrap, owner, args, life_read)).encode())
        guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_LAUNCHER), str(order)),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
            pass_fds=(status_write, life_read, passwd, group, args, order),
        )
        ours.pop_all()
    return SandboxProcess(guard, life_write, _Reports(status_read))


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


def _order(
    spec: SandboxSpec, bwrap: str, owner: Owner | None, args_fd: int, life_fd: int
) -> dict[str, Any]:
    return {
        "life_fd": life_fd,
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
