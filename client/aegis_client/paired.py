"""A request and the transfer that it names, which go together or fail together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

ANSWER_S: Final = 5.0
"""How long to wait, when one of the two has failed, for what the other has to say."""

T = TypeVar("T")


async def requested_with(
    request: Coroutine[Any, Any, T], transfer: Coroutine[Any, Any, object]
) -> T:
    """
    Run both; return the request's result when both are through. When both fail, it is the
    request's error that is raised: it says why.
    """
    asking, moving = asyncio.create_task(request), asyncio.create_task(transfer)
    try:
        await asyncio.wait([asking, moving], return_when=asyncio.FIRST_EXCEPTION)
        if not asking.done():
            await asyncio.wait([asking], timeout=ANSWER_S)
        if asking.done():
            result = asking.result()
            await moving
            return result
        await moving
        return await asking
    finally:
        for task in (asking, moving):
            task.cancel()
        await asyncio.gather(asking, moving, return_exceptions=True)
