"""
The client's settings, read once from the environment.

    ESPCTL_URL, CONTROL_BASE_URL   control; else what `espctl login` kept; else this machine
    ESPCTL_KEY, MCP_AUTH_SECRET    the API key; else the one kept for that URL
    AEGIS_STORE                    the folder of keys, pins and records
    AEGIS_CA_FILE, SSL_CERT_FILE   roots added to the system's, or used in their place
    AEGIS_RELAY_ONLY               1: connect over a TURN server alone
    ESPCTL_ALLOW_INSECURE          1: plain http to other machines
    ESPCTL_TRUST                   first-use (pin an agent's key when first met) or pinned
    AEGIS_CONNECT_TIMEOUT, AEGIS_REQUEST_TIMEOUT   seconds

An empty value is an unset one.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aegis_client.failures import ConfigInvalid, UrlInsecure

DEFAULT_URL: Final = "http://127.0.0.1:8470"
MAX_KEY_CHARS: Final = 512


class TrustMode(StrEnum):
    FIRST_USE = "first-use"
    PINNED = "pinned"


@dataclass(frozen=True)
class ClientConfig:
    """What the environment says. url and key are None where it says nothing."""

    url: str | None = None
    key: str | None = field(default=None, repr=False)
    key_setting: str = ""
    """The variable that the key came from."""
    store: Path = Path()
    store_named: bool = False
    """AEGIS_STORE was given: its parent must exist."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    allow_insecure: bool = False
    relay_only: bool = False
    trust: TrustMode = TrustMode.FIRST_USE
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 60.0


def load(env: Mapping[str, str] | None = None, *, url: str | None = None) -> ClientConfig:
    """
    Return the settings in force; `url` (an option) goes before the environment.

    Raises ConfigInvalid, UrlInsecure: the message names the setting.
    """
    env = os.environ if env is None else env
    key, key_setting = _first(env, "ESPCTL_KEY", "MCP_AUTH_SECRET")
    given_url = url or _first(env, "ESPCTL_URL", "CONTROL_BASE_URL")[0]
    allow_insecure = _flag(env, "ESPCTL_ALLOW_INSECURE")
    store = env.get("AEGIS_STORE")
    return ClientConfig(
        url=checked_url(given_url, allow_insecure=allow_insecure) if given_url else None,
        key=checked_key(key, key_setting) if key else None,
        key_setting=key_setting,
        store=Path(store).expanduser().absolute() if store else default_store(env),
        store_named=bool(store),
        ca_file=_file(env, "AEGIS_CA_FILE"),
        cert_file=_file(env, "SSL_CERT_FILE"),
        allow_insecure=allow_insecure,
        relay_only=_flag(env, "AEGIS_RELAY_ONLY"),
        trust=_trust(env),
        connect_timeout_s=_seconds(env, "AEGIS_CONNECT_TIMEOUT", 10.0),
        request_timeout_s=_seconds(env, "AEGIS_REQUEST_TIMEOUT", 60.0),
    )


def checked_url(url: str, *, allow_insecure: bool) -> str:
    """Return a control URL without a slash at its end, or raise ConfigInvalid, UrlInsecure."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigInvalid(f"{url!r} is not a URL: {exc}") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigInvalid(f"{url!r} is not a URL such as https://control.example.org")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigInvalid("the URL of control has no user, password, `?` or `#` in it")
    if parts.scheme == "http" and not allow_insecure and not is_local(host):
        raise UrlInsecure(f"plain http to {host} would show the key to the network", host=host)
    return parts.geturl().rstrip("/")


def checked_key(key: str, where: str) -> str:
    """Return an API key as it is sent, or raise ConfigInvalid (which does not repeat it)."""
    key = key.strip()
    if not key or len(key) > MAX_KEY_CHARS or not all("!" <= c <= "~" for c in key):
        raise ConfigInvalid(f"{where} holds no API key: one line of printable ASCII, no spaces")
    return key


def is_local(host: str) -> bool:
    """Tell whether `host` is this machine's loopback, where nobody listens on the way."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def default_store(env: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME/aegis/client, or what stands for it on macOS and Windows."""
    if env.get("XDG_STATE_HOME"):
        base = Path(env["XDG_STATE_HOME"])
    elif sys.platform == "win32":
        base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(env.get("HOME") or Path.home()) / ".local" / "state"
    return base / "aegis" / "client"


def _first(env: Mapping[str, str], *names: str) -> tuple[str | None, str]:
    for name in names:
        if env.get(name, "").strip():
            return env[name], name
    return None, ""


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in ("", "0", "false", "no"):
        return False
    if value in ("1", "true", "yes"):
        return True
    raise ConfigInvalid(f"{name} is 1 or 0, not {value!r}", setting=name)


def _file(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value).expanduser() if value else None


def _trust(env: Mapping[str, str]) -> TrustMode:
    value = env.get("ESPCTL_TRUST") or TrustMode.FIRST_USE
    try:
        return TrustMode(value)
    except ValueError as exc:
        raise ConfigInvalid(f"ESPCTL_TRUST is first-use or pinned, not {value!r}") from exc


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as exc:
        raise ConfigInvalid(f"{name} is a number of seconds, not {text!r}", setting=name) from exc
    if not 0.1 <= value <= 3600:
        raise ConfigInvalid(f"{name} lies between 0.1 and 3600 seconds", setting=name)
    return value
