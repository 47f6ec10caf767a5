"""The open event streams: how many each identity has, and whether its key still counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from aegis_protocol.failures.http import RateLimited

from aegis_control.bus import EVERYTHING
from aegis_control.identity import Identity
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.store import keys
from aegis_control.store.database import Database

log = get_logger("events")

MAX_STREAMS: Final = 4096
MAX_STREAMS_PER_IDENTITY: Final = 256

_RETRY_S: Final = 5


@dataclass(eq=False)
class OpenStream:
    """changed: set to have the stream look. doubtful: its key may have been revoked."""

    identity: Identity
    changed: asyncio.Event
    doubtful: bool = False


class Streams:
    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._open: dict[str, set[OpenStream]] = {}
        database.bus.subscribe("keys", self._doubt)

    @property
    def count(self) -> int:
        return sum(len(streams) for streams in self._open.values())

    @contextmanager
    def one_more(self, identity: Identity, changed: asyncio.Event) -> Iterator[OpenStream]:
        """A stream of `identity` while the block lasts. RateLimited when there are too many."""
        own = self._open.get(identity.id, set())
        if len(own) >= MAX_STREAMS_PER_IDENTITY:
            raise RateLimited(
                f"this key has {MAX_STREAMS_PER_IDENTITY} streams open", retry_after_s=_RETRY_S
            )
        if self.count >= MAX_STREAMS:
            raise RateLimited("too many streams are open", retry_after_s=_RETRY_S)
        stream = OpenStream(identity, changed)
        self._open.setdefault(identity.id, set()).add(stream)
        self._metrics.event_streams.inc()
        try:
            yield stream
        finally:
            self._metrics.event_streams.dec()
            self._open[identity.id].discard(stream)
            if not self._open[identity.id]:
                del self._open[identity.id]

    async def may_go_on(self, stream: OpenStream) -> bool:
        """Tell whether the key that opened `stream` is still good."""
        expires_at = stream.identity.expires_at
        if expires_at is not None and expires_at <= time.time():
            return False
        if not stream.doubtful:
            return True
        stream.doubtful = False
        async with self._database.read() as conn:
            key = await keys.get(conn, stream.identity.id)
        if key is None or key.revoked_at is None:
            return True
        log.info("stream.ended", identity=stream.identity.id, why="the key was revoked")
        return False

    def _doubt(self, identity: str) -> None:
        owners = list(self._open) if identity == EVERYTHING else [identity]
        for owner in owners:
            for stream in self._open.get(owner, ()):
                stream.doubtful = True
                stream.changed.set()
