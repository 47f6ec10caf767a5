"""Work that a cancellation waits for: what must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """
    Return what `work`, which ends by itself, returns; a cancellation takes effect after it.

    For threads that write where something is locked, and for killing what was started.
    """
    task = asyncio.ensure_future(work)
    canceled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            canceled = exc
    if canceled is not None:
        if not task.cancelled():
            task.exception()  # retrieved: the cancellation is what is told
        raise canceled
    return task.result()
