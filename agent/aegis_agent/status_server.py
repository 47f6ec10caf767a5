"""
What the agent says of itself on its own machine: `/health`, `/metrics`, `/status.json`.

Off unless AEGIS_STATUS_LISTEN names a loopback address or the path of a socket: several agents may
run on one machine, and an agent opens no port that nobody asked for. It only reads. A page that a
browser on this machine shows gets nothing: a foreign Host, or any Origin, is refused.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.board import Board
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.model import Id, UnixSeconds, Wire
from aegis_protocol.states import JobState
from aiohttp import web

from aegis_agent.status_metrics import metrics

log = structlog.get_logger()

_ADDRESS: Final = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[0-9.]+|localhost):(\d{1,5})$")
_CLOSE_S: Final = 1.0
_MAX_PATH_BYTES: Final = 107
"""Of a socket (unix(7))."""


class StatusUnavailable(AegisError):
    code = "agent.status_unavailable"
    remedy = "Set AEGIS_STATUS_LISTEN to a free loopback address or a socket's path, or to nothing."


class JobStatus(Wire):
    """A job that the agent has. peers: its open connections; running: its tasks that run."""

    job_id: Id
    identity: Id
    state: JobState
    ends_at: UnixSeconds
    peers: int
    running: tuple[str, ...]
    boards: tuple[Id, ...]


class AgentStatus(Wire):
    """
    `/status.json`.

    linked       there is a link to control; trouble: why not, where it said so
    closed       why no new jobs are taken; null: they are
    quarantined  the agent took itself out of service, until an operator resets it
    """

    agent_id: Id
    name: str
    version: str
    started_at: UnixSeconds
    control: str
    linked: bool
    trouble: str | None
    closed: str | None
    draining: bool
    quarantined: bool
    slots: int
    sessions: int
    jobs: tuple[JobStatus, ...]
    jobs_ended: dict[str, int]
    boards: tuple[Board, ...]
    toolchains: tuple[Toolchain, ...]
    disk_used_percent: int


class AgentHealth(Wire):
    """`/health`. status: ok, closed (it works, and takes no new jobs), unlinked."""

    status: str
    version: str
    detail: str | None = None


@dataclass(frozen=True)
class Listen:
    """Where to: a loopback address, or the path of a socket."""

    host: str | None = None
    port: int = 0
    path: Path | None = None

    @classmethod
    def read(cls, text: str) -> Listen:
        """Read a setting. ValueError, in words, for what is no local place."""
        if text.startswith("/"):
            if len(os.fsencode(text)) > _MAX_PATH_BYTES:
                raise ValueError(f"a socket's path has {_MAX_PATH_BYTES} bytes at most")
            return cls(path=Path(text))
        match = _ADDRESS.match(text)
        if match is None or int(match[2]) > 65_535:
            raise ValueError("written as 127.0.0.1:8471, or as the path of a socket")
        host = "127.0.0.1" if match[1] == "localhost" else match[1].strip("[]")
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError("only this machine's own loopback addresses: it has no key")
        return cls(host=host, port=int(match[2]))


@asynccontextmanager
async def status_server(
    listen: Listen, look: Callable[[], Awaitable[AgentStatus]]
) -> AsyncIterator[str]:
    """
    Serve while the block lasts; gives the address, or the path.

    look  what the agent says of itself now

    Raises StatusUnavailable when it can't listen there.
    """
    page = _Page(look)
    app = web.Application(client_max_size=1024, middlewares=[_local])
    app.router.add_get("/health", page.health)
    app.router.add_get("/metrics", page.metrics)
    app.router.add_get("/status.json", page.status)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S)
    await runner.setup()
    try:
        try:
            where = await _listening(runner, listen)
        except OSError as exc:
            place = listen.path or f"{listen.host}:{listen.port}"
            raise StatusUnavailable(f"no listening on {place}: {exc.strerror or exc}") from exc
        log.info("status.served", where=where)
        try:
            yield where
        finally:
            if listen.path is not None:
                listen.path.unlink(missing_ok=True)
    finally:
        await runner.cleanup()


async def _listening(runner: web.AppRunner, listen: Listen) -> str:
    if listen.path is None:
        await web.TCPSite(runner, listen.host, listen.port).start()
        host, port, *_ = runner.addresses[0]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if listen.path.exists() and not stat.S_ISSOCK(listen.path.stat().st_mode):
        raise FileExistsError(17, "something else than a socket lies there")
    listen.path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(listen.path)).start()
    finally:
        os.umask(before)
    return str(listen.path)


@web.middleware
async def _local(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """No page of a browser: its Host would be a name that was made to point here."""
    name = request.host.rpartition(":")[0] or request.host
    name = name.strip("[]")
    own = name == "localhost" or _is_loopback(name)
    if "Origin" in request.headers or not own:
        raise web.HTTPForbidden(text="for programs on this machine\n")
    return await handler(request)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Page:
    def __init__(self, look: Callable[[], Awaitable[AgentStatus]]) -> None:
        self._look = look

    async def health(self, _: web.Request) -> web.Response:
        now = await self._look()
        status = "unlinked" if not now.linked else "closed" if now.closed else "ok"
        detail = now.closed if now.linked else now.trouble
        health = AgentHealth(status=status, version=now.version, detail=detail)
        return _json(health, 200 if now.linked else 503)

    async def status(self, _: web.Request) -> web.Response:
        return _json(await self._look(), 200)

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=metrics(await self._look()),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )


def _json(body: Wire, status: int) -> web.Response:
    return web.json_response(
        text=body.model_dump_json(indent=2) + "\n",
        status=status,
        headers={"Cache-Control": "no-store"},
    )
