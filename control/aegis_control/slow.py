"""What took too long: requests and transactions, logged, counted, and the last ones kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from aegis_control.log import get_logger
from aegis_control.metrics import Metrics

log = get_logger("slow")

Kind: TypeAlias = Literal["request", "read", "write"]
"""read, write: transactions, with what was done in them and the wait for their turn."""

KEPT: Final = 20

_doing: ContextVar[str] = ContextVar("aegis_doing", default="")


@dataclass(frozen=True)
class SlowOperation:
    """at: when it was done, unix seconds. what: the route, or the task that it belonged to."""

    at: float
    kind: Kind
    what: str
    took_s: float


class SlowOperations:
    """limit_s: what takes longer is slow."""

    def __init__(self, limit_s: float, metrics: Metrics) -> None:
        self.limit_s = limit_s
        self.counts: Counter[Kind] = Counter()
        self.recent: deque[SlowOperation] = deque(maxlen=KEPT)
        self._metrics = metrics

    def note(self, kind: Kind, took_s: float) -> None:
        """Something is done, in the task that calls this."""
        if took_s < self.limit_s:
            return
        what = _doing.get() or _task_name()
        self.counts[kind] += 1
        self.recent.append(SlowOperation(time.time(), kind, what, took_s))
        self._metrics.slow_operations.labels(kind=kind).inc()
        log.warning("operation.was_slow", kind=kind, what=what, took_ms=round(took_s * 1000))


@contextmanager
def doing(what: str) -> Iterator[None]:
    """While the block lasts, what is slow is told as `what`."""
    token = _doing.set(what)
    try:
        yield
    finally:
        _doing.reset(token)


def _task_name() -> str:
    task = asyncio.current_task()
    return "" if task is None else task.get_name()
