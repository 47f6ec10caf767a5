"""Room on the disk: what was used least recently goes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from aegis_protocol.failures.source import DiskFull

log = structlog.get_logger()


@dataclass(frozen=True)
class Evictable:
    """Something that can be had again. remove: returns False when it is in use just now."""

    used_at: float
    size_bytes: int
    remove: Callable[[], bool]


def evict(entries: Iterable[Evictable], *, used_bytes: int, needed_bytes: int, quota: int) -> int:
    """
    Remove the least recently used of `entries` until `needed_bytes` more fit into `quota`.

    Returns the bytes used afterwards. Raises DiskFull when all that may go is not enough.
    """
    freed = 0
    for entry in sorted(entries, key=lambda entry: entry.used_at):
        if used_bytes + needed_bytes <= quota:
            break
        if entry.remove():
            used_bytes -= entry.size_bytes
            freed += entry.size_bytes
    if freed:
        log.info("disk.evicted", freed_bytes=freed, used_bytes=used_bytes, quota_bytes=quota)
    if used_bytes + needed_bytes > quota:
        raise DiskFull(
            f"{needed_bytes} bytes more do not fit into this agent's quota of {quota} bytes",
            needed_bytes=needed_bytes,
            quota_bytes=quota,
        )
    return used_bytes
