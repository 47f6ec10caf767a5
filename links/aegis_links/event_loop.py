"""
The event loop that programs with links run on: uvloop where it is installed, else asyncio's own.

uvloop takes many datagrams out of a socket in one pass. `AEGIS_EVENT_LOOP=asyncio` leaves it out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeVar

SWITCH: Final = "AEGIS_EVENT_LOOP"

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end on a new loop, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop; None is asyncio's default."""
    if os.environ.get(SWITCH, "").lower() == "asyncio" or find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory
