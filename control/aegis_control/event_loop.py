"""
The event loop that control runs on: uvloop where it is installed, else asyncio's own.

`AEGIS_EVENT_LOOP=asyncio` leaves uvloop out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end on a new loop, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        runner.run(work)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.environ.get("AEGIS_EVENT_LOOP", "").lower() == "asyncio" or find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory
