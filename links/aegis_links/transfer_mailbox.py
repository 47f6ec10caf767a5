"""One transfer's end of a shared channel: the frames that came for it, and a way to answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from aegis_protocol.channels import PAYLOAD_BYTES
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.failures.link import TransferStalled
from aegis_protocol.frames import (
    TRANSFER_WINDOW_BYTES,
    TransferAbort,
    TransferAck,
    TransferData,
    TransferDone,
    TransferEnd,
    TransferFrame,
    TransferResume,
)

from aegis_links.channel import Channel

CAPACITY_BYTES: Final = TRANSFER_WINDOW_BYTES + 16 * PAYLOAD_BYTES
_FRAME_COST_BYTES: Final = 64

LiveFrame = TransferData | TransferEnd | TransferResume | TransferAck | TransferDone


class Mailbox:
    """
    missed    frames for this number came before anybody wanted them
    given_up  the peer has ended the transfer, or the link has: it need not be told
    """

    def __init__(self, number: int, channel: Channel, *, missed: bool) -> None:
        self.number = number
        self.missed = missed
        self.given_up = False
        self._channel = channel
        self._frames: deque[TransferFrame] = deque()
        self._held_bytes = 0
        self._failure: AegisError | None = None
        self._filled = asyncio.Event()

    def put(self, frame: TransferFrame) -> bool:
        """Take a frame; False where the peer has sent more than its window allows."""
        self._held_bytes += _cost(frame)
        if self._held_bytes > CAPACITY_BYTES:
            return False
        self._frames.append(frame)
        self._filled.set()
        return True

    def fail(self, error: AegisError) -> None:
        """Let the transfer end with `error` once it has taken what came before."""
        self._failure = self._failure or error
        self._filled.set()

    def end(self, error: AegisError) -> None:
        """As `fail`, where the peer knows already."""
        self.given_up = True
        self.fail(error)

    def poll(self) -> LiveFrame | None:
        """Return a frame that is there already. Raises the peer's error if it gave up."""
        if not self._frames:
            if self._failure is not None:
                raise self._failure
            return None
        frame = self._frames.popleft()
        self._held_bytes -= _cost(frame)
        if isinstance(frame, TransferAbort):
            self.given_up = True
            raise from_body(frame.error)
        return frame

    async def get(self, stall_s: float) -> LiveFrame:
        """Return the next frame. Raises TransferStalled, or why there will be none."""
        try:
            async with asyncio.timeout(stall_s):
                while (frame := self.poll()) is None:
                    self._filled.clear()
                    await self._filled.wait()
        except TimeoutError as exc:
            raise TransferStalled(
                f"Transfer {self.number} stood still for {stall_s:g} s.", transfer=self.number
            ) from exc
        return frame

    async def send(self, frame: TransferFrame) -> None:
        await self._channel.send(frame.encode())


def _cost(frame: TransferFrame) -> int:
    size = len(frame.data) if isinstance(frame, TransferData) else 0
    return size + _FRAME_COST_BYTES
