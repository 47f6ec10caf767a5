"""Waiting for a fact, with a limit, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Fact = TypeVar("Fact")

_PAUSE_S = 0.01


async def until(fact: Callable[[], Fact | None], *, within_s: float = 5) -> Fact:
    """
    Return the first value of `fact()` that is neither None nor false.

    Raises
    ------
    TimeoutError  there was none within `within_s`; the message has the last value
    """
    ends = time.monotonic() + within_s
    while not (value := fact()):
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {within_s} s; last seen: {value!r}")
        await asyncio.sleep(_PAUSE_S)
    return value
