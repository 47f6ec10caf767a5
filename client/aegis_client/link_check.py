"""The last check of the doctor: a real session with an agent, and the way that it took."""

from __future__ import annotations

import time
from typing import Final

from aegis_protocol.errors import AegisError

from aegis_client.client import Client
from aegis_client.config import ClientConfig
from aegis_client.doctor import Check
from aegis_client.needs import LINK
from aegis_client.reporter import Silent
from aegis_client.wish import Wish

WAIT_S: Final = 10.0
JOB_S: Final = 60


class _Path(Silent):
    """Remembers how the peers met."""

    def __init__(self) -> None:
        self.path = ""

    def connected(self, agent: str, path: str) -> None:
        self.path = path


async def try_link(config: ClientConfig, agent: str | None) -> Check:
    """Connect to `agent`, or to any; never raises an AegisError."""
    wish = Wish(needs=LINK, timeout_s=JOB_S, wait_s=WAIT_S, agent=agent)
    seen, began = _Path(), time.monotonic()
    try:
        async with Client.opened(config) as client, client.session(wish, seen) as session:
            took_s = time.monotonic() - began
            detail = f"{session.agent.name} reached by {seen.path} in {took_s:.1f} s"
            return Check("peer_link", "ok", detail)
    except AegisError as exc:
        return Check.failed("peer_link", exc)
