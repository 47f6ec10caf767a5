"""How a command reaches a running control: by the local socket, or by URL and operator key."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import aiohttp
import typer
from aegis_protocol.errors import ErrorReply, from_body
from aegis_protocol.failures.http import ControlAnswerInvalid, ControlUnreachable, KeyMissing
from pydantic import BaseModel, ValidationError

from aegis_control.config import load
from aegis_control.local_socket import short_path
from aegis_control.state_dir import StateDir

Model = TypeVar("Model", bound=BaseModel)

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=10)

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url", help="Ask this control, with the operator key in AEGIS_OPERATOR_KEY or a file."
    ),
]
KeyFile: TypeAlias = Annotated[
    Path | None, typer.Option("--key-file", help="The file with the operator key, for --url.")
]
State: TypeAlias = Annotated[
    Path | None, typer.Option("--state-dir", help="The control on this machine. [AEGIS_STATE_DIR]")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class Asking:
    """Where the control is that the command asks; the local one unless `url` is given."""

    def __init__(self, url: str | None, key_file: Path | None, state_dir: Path | None) -> None:
        self._url = None if url is None else url.rstrip("/")
        self._key_file = key_file
        self._state_dir = state_dir

    def get(self, path: str, gives: type[Model]) -> Model:
        return _read(self._ask("GET", path, None), gives)

    def post(self, path: str, body: BaseModel, gives: type[Model]) -> Model:
        return _read(self._ask("POST", path, body.model_dump(mode="json")), gives)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path, None)

    def _ask(self, method: str, path: str, body: Any) -> bytes:
        return asyncio.run(self._asked(method, path, body))

    async def _asked(self, method: str, path: str, body: Any) -> bytes:
        if self._url is not None:
            headers = {"Authorization": f"Bearer {self._key()}"}
            return await _exchange(None, method, self._url + path, body, headers)
        state = StateDir(load(state_dir=self._state_dir).config.state_dir)
        try:
            with short_path(state.socket) as short:
                connector = aiohttp.UnixConnector(path=short)
                return await _exchange(connector, method, f"http://control{path}", body, {})
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

    def _key(self) -> str:
        if self._key_file is not None:
            try:
                return self._key_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise KeyMissing(f"{self._key_file} can't be read") from exc
        key = os.environ.get("AEGIS_OPERATOR_KEY", "").strip()
        if not key:
            raise KeyMissing(
                "--url needs an operator key",
                remedy="Set AEGIS_OPERATOR_KEY, or name a file with --key-file.",
            )
        return key


async def _exchange(
    connector: aiohttp.BaseConnector | None,
    method: str,
    url: str,
    body: Any,
    headers: dict[str, str],
) -> bytes:
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, trust_env=True) as session,
            session.request(method, url, json=body, headers=headers) as response,
        ):
            content, status = await response.read(), response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        raise ControlUnreachable(
            f"control can't be reached at {url}: {exc or 'no answer'}"
        ) from exc
    if status < 400:
        return content
    try:
        raise from_body(ErrorReply.model_validate_json(content).error)
    except ValidationError as exc:
        raise ControlAnswerInvalid(f"{url} answered {status} with something else") from exc


def _read(content: bytes, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as exc:
        raise ControlAnswerInvalid("the answer is none of control's") from exc


def _not_running(state: StateDir) -> ControlUnreachable:
    return ControlUnreachable(
        f"no control runs with {state.path}",
        remedy=(
            "Start `aegis-control serve`, name its folder with --state-dir or AEGIS_STATE_DIR, "
            "or ask another one with --url."
        ),
    )
