"""
Who is told of what: short words by topic, delivered once the change they speak of is committed.

    tell(conn, topic, id)      inside a transaction: `id` of `topic` changed
    bus.subscribe(topic, f)    `f(id)` is called after the commit

What happened is not in the word: whoever hears it reads the store. Words of a transaction that is
rolled back are never heard. An id of `EVERYTHING` means that words may have been missed: look at
all there is. Topics: `job`, `events`, `fleet`, `link`, `frame`, `lease`, `keys`, `policy`, `agent`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.log import get_logger

log = get_logger("bus")

EVERYTHING: Final = "*"
"""In place of an id: words may have been missed."""

Word = tuple[str, str]
"""A topic and an id."""

_TOLD: Final = "aegis_told"


class Bus:
    """Calls whoever subscribed; a subscriber must not wait."""

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Callable[[str], None]]] = defaultdict(list)

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        """Have `callback(id)` called at every word of `topic`, for as long as the bus lives."""
        self._subscribers[topic].append(callback)

    def deliver(self, words: Iterable[Word]) -> None:
        """Call the subscribers; one that raises keeps no other from its word."""
        for topic, word_id in words:
            for callback in self._subscribers.get(topic, ()):
                try:
                    callback(word_id)
                except Exception:
                    log.exception("bus.subscriber_failed", topic=topic)

    def missed(self) -> None:
        """Tell every subscriber that words may have been missed."""
        self.deliver((topic, EVERYTHING) for topic in list(self._subscribers))


async def tell(conn: AsyncConnection, topic: str, word_id: str) -> None:
    """Tell the subscribers of `topic`, here and at other replicas, when `conn` is committed."""
    conn.info.setdefault(_TOLD, {})[topic, word_id] = None


def take_words(conn: AsyncConnection) -> tuple[Word, ...]:
    """Return what was told in this transaction, each once and in order, and forget it."""
    return tuple(conn.info.pop(_TOLD, ()))
