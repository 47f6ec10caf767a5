"""Asyncio tasks that belong to somebody: who opens the context cancels and awaits what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

import structlog

log = structlog.get_logger()


class OwnedTasks:
    """
    A set of tasks that ends with its `async with`.

    Unlike a TaskGroup, one that crashes takes nobody with it: it is logged, being a defect.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
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
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("task.crashed", name=task.get_name(), exc_info=task.exception())
