"""How many event streams are open, of all and of each identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aegis_protocol.failures.http import RateLimited

from aegis_control.metrics import Metrics

MAX_STREAMS: Final = 4096
MAX_STREAMS_PER_IDENTITY: Final = 256

_RETRY_S: Final = 5


class Streams:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._open.total()

    @contextmanager
    def one_more(self, identity: str) -> Iterator[None]:
        """A stream of `identity` while the block lasts. RateLimited when there are too many."""
        if self._open[identity] >= MAX_STREAMS_PER_IDENTITY:
            raise RateLimited(
                f"this key has {MAX_STREAMS_PER_IDENTITY} streams open", retry_after_s=_RETRY_S
            )
        if self.count >= MAX_STREAMS:
            raise RateLimited("too many streams are open", retry_after_s=_RETRY_S)
        self._open[identity] += 1
        self._metrics.event_streams.inc()
        try:
            yield
        finally:
            self._metrics.event_streams.dec()
            self._open[identity] -= 1
            if not self._open[identity]:
                del self._open[identity]
