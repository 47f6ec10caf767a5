"""When each waiting job's client was last there. Kept in memory: a restart begins afresh."""

from __future__ import annotations

import time
from collections.abc import Collection

from aegis_control.hub import Hub


class Presence:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._seen: dict[str, float] = {}
        self._started = time.monotonic()

    def seen(self, job_id: str) -> None:
        """The job's client asked for it just now."""
        self._seen[job_id] = time.monotonic()

    def absent_s(self, job_id: str) -> float:
        """For how long the client has neither listened nor asked."""
        if self._hub.listeners(job_id):
            return 0.0
        return time.monotonic() - self._seen.get(job_id, self._started)

    def keep_only(self, job_ids: Collection[str]) -> None:
        """Forget every other job."""
        self._seen = {job_id: at for job_id, at in self._seen.items() if job_id in job_ids}
