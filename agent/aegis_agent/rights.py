"""
What a grant's actions let a peer know of a task, beyond the requests of the protocol's table:
its notifications, its stream, its keyboard.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Final

from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.rpc import TaskKind

_KNOWS: Final[Mapping[TaskKind, frozenset[Action]]] = MappingProxyType(
    {
        "build": frozenset({Action.BUILD_READ, Action.BUILD_RUN}),
        "flash": frozenset({Action.BOARD_READ, Action.BOARD_FLASH}),
        "monitor": frozenset({Action.CONSOLE_READ, Action.CONSOLE_WRITE}),
    }
)


def may_see(kind: TaskKind, actions: Set[Action]) -> bool:
    """Tell whether a peer is told of such tasks: who may start them must hear how they went."""
    return not _KNOWS[kind].isdisjoint(actions)


def may_type(kind: TaskKind, actions: Set[Action]) -> bool:
    """Tell whether a peer may type into the stream of such a task, and set its size."""
    return (Action.BUILD_RUN if kind == "build" else Action.CONSOLE_WRITE) in actions


def stream_channel(kind: TaskKind) -> ChannelName:
    return ChannelName.PTY if kind == "build" else ChannelName.SERIAL


def stream_needs(kind: TaskKind) -> Action:
    """The action that lets a peer see what such a task prints."""
    return Action.BUILD_READ if kind == "build" else Action.CONSOLE_READ
