"""Whether the agent takes new jobs, and if not, why: several may say no at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

import structlog

log = structlog.get_logger()


class Why(IntEnum):
    """Who says no; of several the first is told."""

    STOPPING = 1  # a signal: the agent stops when the last job has ended
    QUARANTINE = 2  # the agent itself, or an operator: until it is reset
    DRAIN = 3  # an operator
    PAUSE = 4  # an operator
    DISK = 5  # the agent itself


_ORDERS: Final = frozenset({Why.QUARANTINE, Why.DRAIN, Why.PAUSE})


class Intake:
    """on_change: called after each change."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._reasons: dict[Why, str] = {}

    @property
    def reason(self) -> str | None:
        """Why no new job is taken, at most 200 characters; None: jobs are taken."""
        return self._reasons[min(self._reasons)] if self._reasons else None

    @property
    def draining(self) -> bool:
        """What runs is to be the last, of this process or until an operator says otherwise."""
        return Why.STOPPING in self._reasons or Why.DRAIN in self._reasons

    @property
    def stopping(self) -> bool:
        """The agent ends with its last job."""
        return Why.STOPPING in self._reasons

    def closed_by(self, why: Why) -> bool:
        return why in self._reasons

    def close(self, why: Why, reason: str) -> None:
        self._set({**self._reasons, why: reason[:200]})

    def ordered(self, reasons: Mapping[Why, str]) -> None:
        """What operators say, all of it, as one change."""
        others = {why: text for why, text in self._reasons.items() if why not in _ORDERS}
        self._set(others | {why: text[:200] for why, text in reasons.items()})

    def open(self, *whys: Why) -> None:
        """Take back what each of `whys` said; who else says no is still heard."""
        self._set({why: text for why, text in self._reasons.items() if why not in whys})

    def _set(self, reasons: dict[Why, str]) -> None:
        if reasons != self._reasons:
            self._reasons = reasons
            reason = self.reason
            log.info("agent.paused" if reason else "agent.resumed", reason=reason)
            self._on_change()
