"""
What a process knows of its STUN and TURN servers before a link asks: which answer, and why the
others do not.

A server that was met once is knocked at again every REFRESH_S for as long as links use it, so that
no later link waits for one that is dead.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog
from aegis_protocol.http_api.grants import IceServer

from aegis_links.ice_servers import LiveServers, ServerAddress, addresses_of, first_of_each, refusal
from aegis_links.tasks import TaskOwner

REFRESH_S: Final = 20.0
FORGET_S: Final = 3600.0
"""After so long without a link that names it, a server is not knocked at any more."""
MOST_SERVERS: Final = 64

_log = structlog.get_logger("aegis_links.ice_guide")
Place: TypeAlias = "tuple[str, str, int, str]"


@dataclass
class _Known:
    address: ServerAddress
    verdict: asyncio.Task[str | None]
    """The newest that is done, or the first that is not."""
    used_at: float


class IceGuide:
    """
    One for a process is enough: what is known does not depend on credentials. Use it within
    `running`.

    tls         how the certificates of `turns:` servers are judged; by the system's roots without
    relay_only  links with this guide use relayed addresses alone, and show no other to a peer
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, relay_only: bool = False) -> None:
        self.relay_only = relay_only
        self._tls = tls
        self._known: dict[Place, _Known] = {}
        self._asking: set[asyncio.Task[str | None]] = set()

    @property
    def known(self) -> int:
        """How many servers are kept in mind."""
        return len(self._known)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[IceGuide]:
        """Keep what is known fresh until this is left."""
        try:
            async with TaskOwner.around(self._refresh(), "ice-servers"):
                yield self
        finally:
            for asking in self._asking:
                asking.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    def expect(self, urls: Sequence[str]) -> None:
        """Begin to find out about servers that links will ask for. Does not wait."""
        for address in addresses_of([IceServer(urls=(url,)) for url in urls]):
            self._met(address)

    async def living(self, servers: Sequence[IceServer]) -> LiveServers:
        """Return the servers to use: at once where all are known. Never raises."""
        addresses = addresses_of(servers)
        verdicts = [self._met(address).verdict for address in addresses]
        return await first_of_each(addresses, verdicts, self._tls)

    def forget(self) -> None:
        """Knock at every server anew: no link came about, perhaps for a change of network."""
        for known in self._known.values():
            known.verdict = self._ask(known.address)

    def _met(self, address: ServerAddress) -> _Known:
        known = self._known.get(address.place)
        if known is None:
            if len(self._known) >= MOST_SERVERS:
                del self._known[min(self._known, key=lambda place: self._known[place].used_at)]
            known = _Known(address, self._ask(address), time.monotonic())
            self._known[address.place] = known
        known.used_at = time.monotonic()
        return known

    def _ask(self, address: ServerAddress) -> asyncio.Task[str | None]:
        asking = asyncio.create_task(refusal(address, self._tls), name="ice-server")
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return asking

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            for place, known in list(self._known.items()):
                if time.monotonic() - known.used_at > FORGET_S:
                    del self._known[place]
            knocks = [(known, self._ask(known.address)) for known in self._known.values()]
            if knocks:
                await asyncio.wait([knock for _, knock in knocks])
            for known, knock in knocks:
                self._learned(known, knock)

    def _learned(self, known: _Known, knock: asyncio.Task[str | None]) -> None:
        if not (known.verdict.done() and knock.done()):
            return  # `forget` came between
        before, now = known.verdict.result(), knock.result()
        known.verdict = knock
        if (before is None) != (now is None):
            _log.info("ice_server.changed", url=known.address.url, answers=now is None)
