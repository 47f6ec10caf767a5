"""
The datagrams that have come by a link's sockets and are not handled yet, up to a bound.

aioice's own queue has none. Anybody who knows the port can send what looks like DTLS, and the loop
takes it from the socket sooner than libssl finds it forged: what is too much is lost here, as it is
in the kernel when nobody reads.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

MOST_BYTES: Final = 4 * 1024 * 1024
"""More than four times what a peer that heeds our window has on its way."""
OVERHEAD_BYTES: Final = 128
"""What a datagram takes besides its content."""

Datagram: TypeAlias = tuple[bytes, int]


class DatagramQueue(asyncio.Queue[Datagram | None]):
    """Takes the place of `Connection._queue`, whose items these are; None is the end."""

    def put_nowait(self, item: Datagram | None) -> None:
        if item is None or self._held_bytes < MOST_BYTES:
            super().put_nowait(item)

    # What asyncio.Queue leaves to its subclasses.

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._held_bytes = 0

    def _put(self, item: Datagram | None) -> None:
        super()._put(item)
        if item is not None:
            self._held_bytes += len(item[0]) + OVERHEAD_BYTES

    def _get(self) -> Datagram | None:
        item: Datagram | None = super()._get()
        if item is not None:
            self._held_bytes -= len(item[0]) + OVERHEAD_BYTES
        return item
