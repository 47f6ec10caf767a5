"""
Quiet for the tasks that aiortc starts and never awaits.

When a peer vanishes, such tasks end with a ConnectionError that nobody fetches, and asyncio
complains for each. Those, and only those, are logged at debug level; everything else goes on to
the handler that was there before.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import aioice
import aiortc
import structlog

_ROOMS: Final = tuple(
    str(Path(path).parent) for path in (aiortc.__file__, aioice.__file__) if path is not None
)
_log = structlog.get_logger("aegis_links.stray_tasks")
_quieted: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()


def quiet(loop: asyncio.AbstractEventLoop) -> None:
    """Install the handler on `loop`, once."""
    if loop in _quieted:
        return
    _quieted.add(loop)
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if _is_stray(context):
            _log.debug("stray_task.ended", error=repr(context.get("exception")))
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def _is_stray(context: dict[str, Any]) -> bool:
    task, error = context.get("future"), context.get("exception")
    if not isinstance(task, asyncio.Task):
        return False
    code = getattr(task.get_coro(), "cr_code", None)
    ours_to_quiet = code is not None and code.co_filename.startswith(_ROOMS)
    return ours_to_quiet and isinstance(error, ConnectionError | aiortc.InvalidStateError)
