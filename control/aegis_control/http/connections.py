"""
How many connections may be open, in all and from one address, and which gives way to a new one.

A connection is idle while it shakes hands, before its first request and between two. Where there is
no room for a new one, the idle one that was used longest ago is closed, of the same address if it
is that which has too many; where none is idle, the new one is refused. An agent's link and an event
stream, whose callers have proven who they are, never give way and count towards no address: behind
one there may be a whole lab.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Protocol

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import RateLimited, Unavailable

from aegis_control.config import Network
from aegis_control.http.auth import is_within
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.rate_limits import network_of

log = get_logger("http")

_LOOKED_AT: Final = 64
"""Of those that were used longest ago: as many may be in the middle of a request."""
_TELL_EVERY_S: Final = 60.0
_MOST_SAID: Final = 60
_RETRY_S: Final = 1


class Connection(Protocol):
    def is_idle(self) -> bool: ...
    def give_way(self) -> None:
        """Close it."""


class Connections:
    """
    most       how many may be open
    most_each  how many of one address (of an IPv6 one, of its /64) that are neither link nor stream
    proxies    whose connections count towards no address
    """

    def __init__(
        self, *, most: int, most_each: int, proxies: Sequence[Network], metrics: Metrics
    ) -> None:
        self._most = most
        self._most_each = most_each
        self._proxies = proxies
        self._metrics = metrics
        self._networks: dict[Connection, str] = {}
        self._by_use: dict[Connection, None] = {}
        """Those that may have to give way, the one used longest ago first."""
        self._each: dict[str, dict[Connection, None]] = {}
        self._told_s = -_TELL_EVERY_S
        self._said, self._said_since_s = 0, -_TELL_EVERY_S

    def __len__(self) -> int:
        return len(self._networks)

    def opened(self, connection: Connection, address: str) -> AegisError | None:
        """Take it in, and have another give way for it if need be; or say why there is no room."""
        network = "" if is_within(address, self._proxies) else network_of(address)
        same = self._each.get(network, {}) if network else {}
        if len(same) >= self._most_each:
            if not self._make_room(same):
                self._note("refused", address)
                return RateLimited(
                    f"{self._most_each} connections of one address are at work already",
                    retry_after_s=_RETRY_S,
                    scope="connections",
                )
            self._note("closed", address)
        elif len(self._networks) >= self._most:
            if not self._make_room(self._by_use):
                self._note("refused", address)
                return Unavailable("too many connections are open", limit=self._most)
            self._note("closed", address)
        self._networks[connection] = network
        self._list(connection, network)
        self._metrics.connections.inc()
        return None

    def used(self, connection: Connection) -> None:
        """A request came on it."""
        network = self._networks.get(connection)
        if network is not None:
            self._unlist(connection, network)
            self._list(connection, network)

    def proven(self, connection: Connection) -> None:
        """It is an agent's link or an event stream: it stays, until another request comes on it."""
        network = self._networks.get(connection)
        if network is not None:
            self._unlist(connection, network)

    def closed(self, connection: Connection) -> None:
        network = self._networks.pop(connection, None)
        if network is not None:
            self._unlist(connection, network)
            self._metrics.connections.dec()

    def may_say(self) -> bool:
        """
        Whether the log may have a line of its own for what somebody did who has not asked yet.

        Nothing else limits that: of a flood the log has the beginning, once a minute.
        """
        now_s = time.monotonic()
        if now_s - self._said_since_s >= _TELL_EVERY_S:
            self._said, self._said_since_s = 0, now_s
        self._said += 1
        return self._said <= _MOST_SAID

    def _make_room(self, among: Iterable[Connection]) -> bool:
        for one in islice(among, _LOOKED_AT):
            if one.is_idle():
                self.closed(one)
                one.give_way()
                return True
        return False

    def _list(self, connection: Connection, network: str) -> None:
        self._by_use[connection] = None
        if network:
            self._each.setdefault(network, {})[connection] = None

    def _unlist(self, connection: Connection, network: str) -> None:
        self._by_use.pop(connection, None)
        same = self._each.get(network)
        if same is not None:
            same.pop(connection, None)
            if not same:
                del self._each[network]

    def _note(self, done: str, address: str) -> None:
        """Count it, and say it once a minute: a flood must not fill the log."""
        self._metrics.connections_bounded.labels(done=done).inc()
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            log.warning("connections.bounded", done=done, remote=address, open=len(self._networks))
