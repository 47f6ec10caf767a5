"""
What a caller may do by its role; what it tried beyond that and would have changed something is in
the audit: of each caller and route once a minute, so that one who goes on trying does not fill it.
"""

from __future__ import annotations

import time
from typing import Final

from aegis_protocol.failures.http import RoleInsufficient
from aiohttp import hdrs

from aegis_control.http.route import Route
from aegis_control.identity import Identity
from aegis_control.store import audit
from aegis_control.store.audit import Act
from aegis_control.store.database import Database

EVERY_S: Final = 60.0
_MOST: Final = 4096
_PATH_CHARS: Final = 200


class Denials:
    """Remembers of whom it wrote lately."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told: dict[tuple[str, str, str], float] = {}

    async def check(self, identity: Identity, route: Route, path: str, source: str) -> None:
        """Raise RoleInsufficient unless the caller's role suffices for the route."""
        if route.role is None:
            return
        try:
            identity.require(route.role)
        except RoleInsufficient as exc:
            if route.method != hdrs.METH_GET and self._is_new(identity, route):
                await self._write(identity, route, path, source, exc)
            raise

    def _is_new(self, identity: Identity, route: Route) -> bool:
        now, key = time.monotonic(), (identity.id, route.method, route.path)
        if now - self._told.get(key, -EVERY_S) < EVERY_S:
            return False
        self._told.pop(key, None)  # the oldest stay in front
        self._told[key] = now
        while len(self._told) > _MOST:
            del self._told[next(iter(self._told))]
        return True

    async def _write(
        self, identity: Identity, route: Route, path: str, source: str, exc: RoleInsufficient
    ) -> None:
        act = Act(
            what="request.denied",
            who=identity.id,
            source=source or None,
            decision="denied",
            rule=f"role {identity.role}",
            outcome=exc.code,
            facts={"method": route.method, "path": path[:_PATH_CHARS], "needed": str(route.role)},
        )
        async with self._database.write() as conn:
            await audit.record(conn, act, now_s=time.time())
