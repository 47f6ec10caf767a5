"""
When each waiting job's client was last there.

What this replica saw itself it keeps in memory: a restart begins afresh. For the other replicas it
is written down every few seconds, of jobs that wait for an agent or are lost.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from aegis_control.hub import Hub

_WAITS_S: Final = 20.0
"""A client that does not listen asks every 15 s."""


class Presence:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._seen: dict[str, float] = {}
        self._started = time.monotonic()
        self._noted = time.monotonic()

    def seen(self, job_id: str) -> None:
        """The job's client asked for it just now."""
        self._seen[job_id] = time.monotonic()

    def absent_s(self, job_id: str, *, noted_s: float | None = None) -> float:
        """
        For how long the client has neither listened nor asked.

        noted_s  how long ago some replica noted it in the store
        """
        if self._hub.listeners(job_id):
            return 0.0
        here_s = time.monotonic() - self._seen.get(job_id, self._started)
        return here_s if noted_s is None else min(here_s, max(0.0, noted_s))

    def waits(self, job_id: str, *, noted_s: float | None = None) -> bool:
        """Tell whether the client listens, or asked lately. noted_s: see `absent_s`."""
        asked = self._seen.get(job_id)
        return (
            self._hub.listeners(job_id) > 0
            or (asked is not None and time.monotonic() - asked < _WAITS_S)
            or (noted_s is not None and noted_s < _WAITS_S)
        )

    def news(self, job_ids: Collection[str]) -> tuple[str, ...]:
        """Of these jobs, those whose client was here since this was last asked."""
        since, self._noted = self._noted, time.monotonic()
        return tuple(
            job_id
            for job_id in job_ids
            if self._hub.listeners(job_id) or self._seen.get(job_id, 0.0) >= since
        )

    def keep_only(self, job_ids: Collection[str]) -> None:
        """Forget every other job."""
        self._seen = {job_id: at for job_id, at in self._seen.items() if job_id in job_ids}
