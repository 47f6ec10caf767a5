"""
Tasks with an owner: for what lives beside an `async with` body without canceling it.

A TaskGroup cancels its body and wraps the body's errors. A link must do neither: when its life
ends, the body hears of it from the streams that it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """
    Run a short blocking call in a thread; when canceled, wait for it first.

    So whoever cleans up afterwards never closes a file that a thread is still writing.
    """
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # fetched: the cancellation is what counts
        raise


class TaskOwner:
    """Owns tasks until `cancel`, which waits for all of them and raises the first bug."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None

    @classmethod
    @asynccontextmanager
    async def around(cls, coroutine: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
        """Run `coroutine` while the body runs, and no longer."""
        owner = cls()
        owner.start(coroutine, name)
        try:
            yield
        finally:
            await owner.cancel()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def abandon(self) -> None:
        """Cancel what still runs, without waiting for it."""
        for task in self._tasks:
            task.cancel()

    async def cancel(self) -> None:
        """Cancel what still runs and wait for it; then raise what no task should have raised."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        bug, self._bug = self._bug, None
        if bug is not None:
            raise bug

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._bug is None:
            self._bug = task.exception()
