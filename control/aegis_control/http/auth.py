"""The key of a request, and the address that it really came from."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from aegis_protocol.failures.http import KeyMissing, KeysDiffer
from aiohttp import web

from aegis_control.config import Network


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
    The caller's address for the log.

    `X-Forwarded-For` counts as far as trusted proxies wrote it: read from the right, the first
    address that is no trusted proxy.
    """
    address = request.remote or ""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
    hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
    while hops and _within(address, proxies):
        address = hops.pop()[:64]
    return address


def _bearer(header: str) -> str:
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)
