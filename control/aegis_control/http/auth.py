"""The key of a request, and the address that it really came from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from aegis_protocol.failures.http import KeyMissing, KeysDiffer
from aiohttp import web

from aegis_control.config import Network

_HOP: Final = re.compile(r"^(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+))(?::\d{1,5})?$")


def presented_key(request: web.Request) -> str:
    """
    Return the secret that the request brings, as `Authorization: Bearer` or as `X-API-Key`.

    Raises KeyMissing, and KeysDiffer when there are two that are not the same.
    """
    found = {value.strip() for value in request.headers.getall("X-API-Key", [])}
    found |= {_bearer(value) for value in request.headers.getall("Authorization", [])}
    found.discard("")
    if len(found) > 1:
        raise KeysDiffer("the request has two keys that differ")
    if not found:
        raise KeyMissing("this needs an API key")
    return found.pop()


def presented_grant(request: web.Request) -> str | None:
    """The Bearer token, if it has a grant's shape (a JWT: three parts)."""
    for value in request.headers.getall("Authorization", []):
        token = _bearer(value)
        if token.startswith("ey") and token.count(".") == 2:
            return token
    return None


def remote_address(request: web.Request, proxies: Sequence[Network]) -> str:
    """
    The caller's address, for the log and for limits.

    `X-Forwarded-For` counts as far as trusted proxies wrote it: read from the right, the first
    address that is no trusted proxy. What is no address (`unknown`) ends it: then the proxy that
    wrote it is all that is known.
    """
    address = request.remote or ""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
    hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
    while hops and is_within(address, proxies):
        before = _without_port(hops.pop())
        if before is None:
            break
        address = before
    return address


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """
    Tell whether `address`, which may be none, lies in one of `networks`.

    A socket for both families calls 192.0.2.1 ::ffff:192.0.2.1, and a network's words may, too.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return any(parsed in network or parsed.ipv4_mapped in network for network in networks)
    return any(parsed in network for network in networks)


def _without_port(hop: str) -> str | None:
    """The address of a hop, which some proxies write with its port; None when it is none."""
    match = _HOP.match(hop)
    address = hop if match is None else match["v6"] or match["v4"]
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None


def _bearer(header: str) -> str:
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
