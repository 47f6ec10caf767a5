"""Wakes those who listen to a job. What happened they read from the store, by its event id."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from aegis_control.bus import EVERYTHING


class Hub:
    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = defaultdict(set)

    def listeners(self, job_id: str) -> int:
        return len(self._listeners[job_id]) if job_id in self._listeners else 0

    def notify(self, job_id: str) -> None:
        """Something about the job (or `EVERYTHING`) changed; call it after the commit."""
        if job_id == EVERYTHING:
            self.notify_all()
        for event in self._listeners.get(job_id, ()):
            event.set()

    def notify_all(self) -> None:
        for job_id in list(self._listeners):
            self.notify(job_id)

    @contextmanager
    def listen(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set at every change; clear it before looking at the store."""
        event = asyncio.Event()
        self._listeners[job_id].add(event)
        try:
            yield event
        finally:
            self._listeners[job_id].discard(event)
            if not self._listeners[job_id]:
                del self._listeners[job_id]


async def set_within(event: asyncio.Event, limit_s: float) -> bool:
    """Wait until `event` is set, `limit_s` at most; tells whether it is."""
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
