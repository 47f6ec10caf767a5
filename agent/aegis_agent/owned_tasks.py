"""Asyncio tasks that belong to somebody: who opens the context cancels and awaits what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import structlog
from aegis_protocol.errors import AegisError

log = structlog.get_logger()

T = TypeVar("T")


class OwnedTasks:
    """
    A set of tasks that ends with its `async with`.

    Unlike a TaskGroup, one that fails takes nobody with it: a defect is logged, a named failure is
    for whoever awaits the task.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def wait(self, *, deadline_s: float) -> bool:
        """Wait until all have ended; False when some have not by the deadline."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=deadline_s)
        return not self._tasks

    async def cancel(self) -> None:
        """Cancel all, what they start meanwhile included, and wait until none is left."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AegisError):
            log.debug("task.failed", name=task.get_name(), code=error.code)
        elif error is not None:
            log.error("task.crashed", name=task.get_name(), exc_info=error)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or None when `stop` was set first; `work` is canceled then."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    working = asyncio.create_task(work, name="work")
    try:
        await asyncio.wait([stopping, working], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait([stopping, working])
        if not working.cancelled():
            working.exception()  # fetched, whoever leaves here and why
