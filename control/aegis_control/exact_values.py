"""Settings that must be exact: what is wrong with a value, and which would be right."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

_DATABASES: Final = ("sqlite+aiosqlite", "postgresql+asyncpg")
_MEANT: Final = {
    "sqlite": "sqlite+aiosqlite:///PATH",
    "postgres": "postgresql+asyncpg://, and the rest as it is",
    "postgresql": "postgresql+asyncpg://, and the rest as it is",
}


def check_origin(origin: str) -> None:
    """
    Raise ValueError unless `origin` is exact: scheme and host, no path, slash or wildcard.

    The error says which value would be right.
    """
    parts = urlsplit(origin)
    if "*" in origin:
        raise ValueError(
            f"{origin!r} has a wildcard: write each origin, such as https://app.example.org"
        )
    if "://" not in origin and origin != "null":
        raise ValueError(f"{origin!r} has no scheme: write https://{origin.rstrip('/')}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{origin!r} is no origin: write one such as https://app.example.org")
    right = f"{parts.scheme}://{_as_browsers_write(parts.netloc.rpartition('@')[2])}".lower()
    if origin.endswith("/") and origin.rstrip("/") == f"{parts.scheme}://{parts.netloc}":
        raise ValueError(f"{origin!r} ends with a slash: write {right}")
    if origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError(f"{origin!r} has more than scheme, host and port: write {right}")
    if (parts.scheme, parts.port) in (("http", 80), ("https", 443)):
        raise ValueError(
            f"{origin!r} has the default port, which browsers leave out: "
            f"write {right.rpartition(':')[0]}"
        )
    if origin != right:
        how = "has upper-case letters" if origin.lower() == right else "is not as browsers write it"
        raise ValueError(f"{origin!r} {how}: write {right}")


def _as_browsers_write(netloc: str) -> str:
    """The host in ASCII (RFC 3490), as it stands in an Origin header."""
    host, colon, port = netloc.rpartition(":") if not netloc.endswith("]") else (netloc, "", "")
    host, colon, port = (host, colon, port) if host else (port, "", "")
    try:
        ascii_host = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError as exc:
        raise ValueError(f"{netloc!r} is no host") from exc
    return f"{ascii_host}{colon if port else ''}{port}"


def check_network(word: object) -> None:
    """Raise ValueError unless `word` is a network or an address; the error says which is meant."""
    text = str(word)
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError as exc:
            raise ValueError(
                f"{text!r} is no network: write one such as 10.0.0.0/8 or fd00::/8"
            ) from exc
        raise ValueError(f"{text!r} has bits beyond its prefix: write {meant}") from None


def check_database_url(url: str) -> None:
    """Raise ValueError, which does not repeat it, unless control can use this kind of store."""
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in _DATABASES:
        meant = _MEANT.get(scheme, "postgresql+asyncpg://USER:PASSWORD@HOST/NAME")
        raise ValueError(f"no URL of a store that control can use: write {meant}")
