"""Channels that a peer opens without a grant: closed, told of, and an end to whoever goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import ChannelNotGranted, LinkFlooded
from aiortc import RTCDataChannel

from aegis_links.tasks import TaskOwner

MAX_REJECTED_CHANNELS: Final = 16

_SHOWN_LABEL_CHARS: Final = 40
_log = structlog.get_logger("aegis_links.rejecting")

OnRejected: TypeAlias = Callable[[ChannelNotGranted], Awaitable[None]]


class Rejecting:
    """
    tell   awaited, in a task of `tasks`, with an error for each channel that was closed
    """

    def __init__(self, tasks: TaskOwner, tell: OnRejected | None) -> None:
        self._tasks = tasks
        self._tell = tell
        self._count = 0

    def reject(self, raw: RTCDataChannel) -> LinkFlooded | None:
        """Close a channel; return the error that ends the link where it was one too many."""
        raw.close()
        label = "".join(c if c.isprintable() else "?" for c in raw.label[:_SHOWN_LABEL_CHARS])
        _log.warning("channel.rejected", channel=label)
        self._count += 1
        if self._count > MAX_REJECTED_CHANNELS:
            return LinkFlooded("The peer opens one channel after another without a grant.")
        if self._tell is not None:
            error = ChannelNotGranted(f"Channel {label} was rejected", channel=label)
            self._tasks.start(_told(self._tell, error), "channel rejected")
        return None


async def _told(tell: OnRejected, error: ChannelNotGranted) -> None:
    with suppress(AegisError):  # the link ended meanwhile: nobody is left to be told
        await tell(error)
