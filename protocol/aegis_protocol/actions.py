"""
Who may do what: roles, actions, and the one table that maps methods to actions.

A method that stands in no row is denied.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    VIEWER = "viewer"
    BUILDER = "builder"
    FLASHER = "flasher"
    OPERATOR = "operator"


class Action(StrEnum):
    BUILD_READ = "build.read"
    BUILD_RUN = "build.run"
    ARTIFACT_READ = "artifact.read"
    BOARD_READ = "board.read"
    BOARD_FLASH = "board.flash"
    CONSOLE_READ = "console.read"
    CONSOLE_WRITE = "console.write"
    SOURCE_WRITE = "source.write"


_VIEWER: Final = frozenset({Action.BUILD_READ, Action.ARTIFACT_READ, Action.BOARD_READ})
_BUILDER: Final = _VIEWER | {Action.BUILD_RUN, Action.SOURCE_WRITE}
_FLASHER: Final = _BUILDER | {Action.BOARD_FLASH, Action.CONSOLE_READ, Action.CONSOLE_WRITE}

ROLE_ACTIONS: Final[Mapping[Role, frozenset[Action]]] = MappingProxyType(
    {
        Role.VIEWER: _VIEWER,
        Role.BUILDER: _BUILDER,
        Role.FLASHER: _FLASHER,
        Role.OPERATOR: _FLASHER,
    }
)

RANK: Final[Mapping[Role, int]] = MappingProxyType({role: n for n, role in enumerate(Role)})
"""viewer < builder < flasher < operator."""

METHOD_ACTION: Final[Mapping[str, Action | None]] = MappingProxyType(
    {
        # None: any peer with a grant for the espctl channel may.
        "session.hello": None,
        "job.end": None,
        "job.extend": None,
        "link.measure": None,
        "source.plan": Action.SOURCE_WRITE,
        "source.push": Action.SOURCE_WRITE,
        "build.start": Action.BUILD_RUN,
        "build.cancel": Action.BUILD_RUN,
        "build.status": Action.BUILD_READ,
        "logs.tail": Action.BUILD_READ,
        "artifacts.list": Action.ARTIFACT_READ,
        "artifact.fetch": Action.ARTIFACT_READ,
        "boards.list": Action.BOARD_READ,
        "flash.start": Action.BOARD_FLASH,
        "flash.cancel": Action.BOARD_FLASH,
        "monitor.open": Action.CONSOLE_READ,
        "monitor.close": Action.CONSOLE_READ,
        "board.reset": Action.BOARD_FLASH,
    }
)


def allowed(method: str, actions: frozenset[Action]) -> bool:
    """Tell whether a grant with `actions` may call `method`."""
    if method not in METHOD_ACTION:
        return False
    needed = METHOD_ACTION[method]
    return needed is None or needed in actions
