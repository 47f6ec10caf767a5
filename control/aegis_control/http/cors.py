"""
Which pages may call control: exact origins, never credentials.

Keys travel in headers that no browser adds by itself, so a foreign page can do nothing in a
visitor's name; the list keeps it from using a key that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from aegis_protocol.failures.http import OriginRefused
from aiohttp import hdrs, web

_METHODS: Final = "GET, POST, DELETE, OPTIONS"
_HEADERS: Final = (
    "Authorization, X-API-Key, Content-Type, Idempotency-Key, Last-Event-ID, X-Capabilities,"
    " X-Codebases"
)
_EXPOSED: Final = "Retry-After, X-Request-Id"
_MAX_AGE_S: Final = 600


class Origins:
    """allowed: ALLOWED_ORIGINS. base_url: control's own pages have this origin."""

    def __init__(self, allowed: Sequence[str], base_url: str) -> None:
        own = urlsplit(base_url)
        self._own = f"{own.scheme}://{own.netloc}".lower()
        self._allowed = frozenset(allowed)

    def check(self, request: web.Request) -> None:
        """Raise OriginRefused for a page that is not on the list; no Origin is no page."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self._allows(origin, request):
            raise OriginRefused(
                f"the origin {origin[:200]} may not call this control",
                remedy=f"If it is yours, add it to control's ALLOWED_ORIGINS: {origin[:200]}",
                origin=origin[:200],
            )

    def preflight(self, request: web.Request) -> web.Response:
        """The answer to OPTIONS from an allowed origin."""
        self.check(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(_MAX_AGE_S),
            },
        )

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that every answer carries, errors and streams too."""
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self._allows(origin, request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def _allows(self, origin: str, request: web.Request) -> bool:
        if origin in self._allowed or origin == self._own:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == request.host
