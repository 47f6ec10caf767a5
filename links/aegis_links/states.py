"""The states of a link and of a channel, and the moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class LinkState(StrEnum):
    NEW = "new"  # addresses are being gathered, or the peer's description is awaited
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"  # by either side, on purpose
    FAILED = "failed"  # with an error


class ChannelState(StrEnum):
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


LINK_MOVES: Final[Mapping[LinkState, frozenset[LinkState]]] = MappingProxyType(
    {
        LinkState.NEW: frozenset({LinkState.CONNECTING, LinkState.CLOSED, LinkState.FAILED}),
        LinkState.CONNECTING: frozenset({LinkState.OPEN, LinkState.CLOSED, LinkState.FAILED}),
        LinkState.OPEN: frozenset({LinkState.CLOSED, LinkState.FAILED}),
        LinkState.CLOSED: frozenset(),
        LinkState.FAILED: frozenset(),
    }
)

CHANNEL_MOVES: Final[Mapping[ChannelState, frozenset[ChannelState]]] = MappingProxyType(
    {
        ChannelState.CONNECTING: frozenset({ChannelState.OPEN, ChannelState.CLOSED}),
        ChannelState.OPEN: frozenset({ChannelState.CLOSED}),
        ChannelState.CLOSED: frozenset(),
    }
)
