"""One request to a control: over its local socket, or over HTTP with an operator key."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aegis_protocol.errors import ErrorReply, from_body
from aegis_protocol.failures.http import ControlAnswerInvalid, ControlUnreachable
from pydantic import ValidationError

from aegis_control.config import ConfigInvalid
from aegis_control.local_socket import short_path
from aegis_control.state_dir import StateDir
from aegis_control.trust import trust

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=10)


def by_url(url: str, key: str, method: str, path: str, body: Any) -> bytes:
    """Ask the control at `url`; raises its own error, ControlUnreachable, ControlAnswerInvalid."""
    headers = {"Authorization": f"Bearer {key}"}
    return asyncio.run(_exchange(None, method, url + path, body, headers))


def by_socket(state: StateDir, method: str, path: str, body: Any) -> bytes:
    """Ask the control that runs with `state`; raises as `by_url`."""
    try:
        with short_path(state.socket) as short:
            return asyncio.run(_exchange(short, method, f"http://control{path}", body, {}))
    except FileNotFoundError as exc:
        raise _not_running(state) from exc
    except PermissionError as exc:
        raise ControlUnreachable(
            f"{state.path} belongs to another user",
            remedy="Run this as root or as control's user, or use --url with an operator key.",
        ) from exc
    except ControlUnreachable as exc:
        if isinstance(exc.__cause__, aiohttp.ClientConnectorError):
            raise _not_running(state) from exc
        raise


async def _exchange(
    socket: str | None, method: str, url: str, body: Any, headers: Mapping[str, str]
) -> bytes:
    connector = _by_tls() if socket is None else aiohttp.UnixConnector(path=socket)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, trust_env=True) as session,
            session.request(method, url, json=body, headers=headers) as response,
        ):
            content, status = await response.read(), response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        why = str(exc) or "no answer in time"
        raise ControlUnreachable(f"control can't be reached at {url}: {why}") from exc
    if status < 400:
        return content
    try:
        raise from_body(ErrorReply.model_validate_json(content).error)
    except ValidationError as exc:
        raise ControlAnswerInvalid(f"{url} answered {status} with something else") from exc


def _by_tls() -> aiohttp.TCPConnector:
    """Trusts as clients do: the system's roots or SSL_CERT_FILE's, and AEGIS_CA_FILE's."""
    try:
        return aiohttp.TCPConnector(ssl=trust())
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(
            f"AEGIS_CA_FILE: {os.environ.get('AEGIS_CA_FILE')} can't be used: {exc}",
            setting="AEGIS_CA_FILE",
        ) from exc


def _not_running(state: StateDir) -> ControlUnreachable:
    return ControlUnreachable(
        f"no control runs with {state.path}",
        remedy=(
            "Start `aegis-control serve`, name its folder with --state-dir or AEGIS_STATE_DIR, "
            "or ask another one with --url."
        ),
    )
