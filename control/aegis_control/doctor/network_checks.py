"""Whether control runs, listens, and is reached by the address that others are given."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

import aiohttp
from aegis_protocol import __version__
from aegis_protocol.http_api.health import Health
from pydantic import ValidationError

from aegis_control.doctor.check import Check, error, failed, ok, skipped, warning
from aegis_control.doctor.subject import Subject
from aegis_control.trust import trust

_LIMIT_S: Final = 5.0
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def control_plane(subject: Subject) -> Check:
    if subject.answers is None:
        assert subject.unreached is not None
        return failed("control_plane", subject.unreached)
    status = subject.answers.status
    if not status.store_ok:
        return error(
            "control_plane",
            f"process {status.pid} runs, but its store does not answer, or takes nothing",
            "See the checks of the database, and control's log.",
        )
    return ok("control_plane", f"process {status.pid} answers")


def version(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("version", "no control answers")
    running = subject.answers.status.version
    if running != __version__:
        return warning(
            "version",
            f"{running} runs, and {__version__} is installed",
            "Restart control: systemctl restart aegis-control",
        )
    return ok("version", running)


async def listening(subject: Subject) -> Check:
    """With control running its port must take connections, without it the port must be free."""
    host, port = subject.config.host_and_port
    where = subject.config.listen
    if subject.answers is None:
        return _is_free(host, port, where)
    if port == 0:
        return skipped("listening", "the port is taken anew at each start")
    try:
        async with asyncio.timeout(_LIMIT_S):
            _, writer = await asyncio.open_connection(_ANYWHERE.get(host, host), port)
        writer.transport.abort()
    except OSError as exc:
        return error(
            "listening",
            f"{where} takes no connection: {exc.strerror or 'no answer in time'}",
            "Look at control's log; AEGIS_LISTEN here must be the one that it was started with.",
        )
    return ok("listening", where)


async def public_url(subject: Subject) -> Check:
    url = subject.public_url
    if url is None:
        return skipped("public_url", "CONTROL_PUBLIC_BASE_URL is not set, and no control answers")
    remedy = (
        "Open the port, mend DNS or the reverse proxy, or correct CONTROL_PUBLIC_BASE_URL; from"
        " here it must be reached as from elsewhere."
    )
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LIMIT_S)) as session,
            session.get(f"{url}/health", ssl=trust(), allow_redirects=False) as answer,
        ):
            health = Health.model_validate_json(await answer.read())
    except (aiohttp.ClientError, TimeoutError, ValidationError, ValueError) as exc:
        if isinstance(exc, ValidationError):
            why = "what answers there is no control"
        else:
            why = str(exc) or "no answer in time"
        if subject.answers is None:
            return skipped("public_url", f"{url}: {why}; no control answers here either")
        return error("public_url", f"{url}: {why}", remedy)
    if health.status != "ok":
        return warning("public_url", f"{url} answers: {health.status}", "See control's log.")
    return ok("public_url", f"{url} answers")


def _is_free(host: str, port: int, where: str) -> Check:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        with socket.socket(family, kind, proto) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as exc:
        taken = exc.errno == errno.EADDRINUSE
        return error(
            "listening",
            f"{where}: {'another program listens there' if taken else exc.strerror}",
            "End what listens there (ss -ltnp), or choose another AEGIS_LISTEN.",
        )
    return ok("listening", f"{where} is free for control")
