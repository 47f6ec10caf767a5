"""How a command reaches a running control: by the local socket, or by URL and operator key."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import typer
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import BadRequest, ControlAnswerInvalid, KeyMissing
from pydantic import BaseModel, ValidationError

from aegis_control.config_sources import load
from aegis_control.state_dir import StateDir

Model = TypeVar("Model", bound=BaseModel)

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


class UrlInsecure(AegisError):
    code = "config.url_insecure"
    remedy = (
        "Use https. In a network that you trust, ESPCTL_ALLOW_INSECURE=1 allows plain http to "
        "another host: whoever listens there then sees the key."
    )


class Asking:
    """Where the control is that the command asks; the local one unless `url` is given."""

    def __init__(self, url: str | None, key_file: Path | None, state_dir: Path | None) -> None:
        self._url = None if url is None else _checked(url)
        self._key_file = key_file
        self._state_dir = state_dir

    def get(self, path: str, gives: type[Model]) -> Model:
        return _read(self._ask("GET", path, None), gives)

    def text(self, path: str) -> str:
        """What is no JSON: the metrics."""
        return self._ask("GET", path, None).decode(errors="replace")

    def post(self, path: str, body: BaseModel | None, gives: type[Model]) -> Model:
        sent = None if body is None else body.model_dump(mode="json")
        return _read(self._ask("POST", path, sent), gives)

    def tell(self, path: str, body: BaseModel) -> None:
        """POST what has no answer."""
        self._ask("POST", path, body.model_dump(mode="json"))

    def delete_for(self, path: str, gives: type[Model]) -> Model:
        return _read(self._ask("DELETE", path, None), gives)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path, None)

    def _ask(self, method: str, path: str, body: Any) -> bytes:
        # imported here: an HTTP client takes long to load, and a wrong word needs none
        from aegis_control.commands import exchange

        if self._url is not None:
            return exchange.by_url(self._url, self._key(), method, path, body)
        state = StateDir(load(state_dir=self._state_dir).config.state_dir)
        return exchange.by_socket(state, method, path, body)

    def _key(self) -> str:
        if self._key_file is not None:
            try:
                return _one_line(self._key_file.read_text(), str(self._key_file))
            except (OSError, UnicodeDecodeError) as exc:
                why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
                raise _no_key(f"{self._key_file} can't be read: {why}") from exc
        key = os.environ.get("AEGIS_OPERATOR_KEY", "").strip()
        if not key:
            raise _no_key("--url needs an operator key")
        return _one_line(key, "AEGIS_OPERATOR_KEY")


def _checked(url: str) -> str:
    """A control's URL without a slash at its end; BadRequest, UrlInsecure when it is none."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise BadRequest(f"--url {url[:80]}: {exc}", field="--url") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise BadRequest(
            f"--url {url[:80]}: that is no URL",
            remedy="Write one such as https://control.example.org",
            field="--url",
        )
    open_to_all = parts.scheme == "http" and not _is_local(host)
    if open_to_all and os.environ.get("ESPCTL_ALLOW_INSECURE") != "1":
        raise UrlInsecure(f"plain http to {host} would show the key to the network", host=host)
    return parts.geturl().rstrip("/")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _one_line(text: str, where: str) -> str:
    key = text.strip()
    if not key or not all("!" <= c <= "~" for c in key):
        raise _no_key(f"{where} holds no API key: one line of printable ASCII, no spaces")
    return key


def _no_key(message: str) -> KeyMissing:
    return KeyMissing(message, remedy="Set AEGIS_OPERATOR_KEY, or name a file with --key-file.")


def _read(content: bytes, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as exc:
        raise ControlAnswerInvalid("the answer is none of control's") from exc
