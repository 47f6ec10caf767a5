"""
The agents' WebSocket: aiohttp's, but that a heartbeat costs next to nothing.

A `pong` says no more than that the agent lives. It is taken note of where it comes in, and wakes
nobody; every other frame waits to be received. Frames are sent at once, without a task that waits
for them: the kernel and the transport keep what the agent has not taken yet.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

from aegis_protocol.control_link import MAX_FRAME_BYTES
from aiohttp import web
from aiohttp.http import (
    WebSocketReader,
    WebSocketWriter,
    WSMessage,
    WSMessageTextBytes,
    WSMsgType,
)
from aiohttp.web_ws import WebSocketDataQueue  # type: ignore[attr-defined]  # no public name

CLOSE_S: Final = 2.0
"""How long the other side may take to close."""

_UNREAD_BYTES: Final = 65_536
"""Frames that were not received yet; twice that much, and nothing more is read."""
_PONG: Final = re.compile(r'\{"type":"pong","time":[0-9.]{1,32}\}')
"""As pydantic writes it. One that is written otherwise is a frame like others."""

_SHORT: Final = 126
_MEDIUM: Final = 65_536


class Inbox(WebSocketDataQueue):
    """
    What came and was not received yet.

    heard_s     when a frame came last (monotonic); it may be set
    takes_note  of pongs, in place of keeping them; not before the agent has proven who it is
    """

    __slots__ = ("heard_s", "takes_note")

    heard_s: float
    takes_note: bool

    def feed_data(self, data: WSMessage | WSMessageTextBytes, size: int) -> None:
        self.heard_s = time.monotonic()
        if self.takes_note and data.type is WSMsgType.TEXT and _PONG.fullmatch(str(data.data)):
            return
        super().feed_data(data, size)


class LinkSocket(web.WebSocketResponse):
    """
    Uncompressed: that costs 90 KiB for each idle connection.

    inbox  what comes in; there is one once the socket is prepared
    """

    inbox: Inbox

    def __init__(self) -> None:
        super().__init__(timeout=CLOSE_S, compress=False, max_msg_size=MAX_FRAME_BYTES)

    def _post_start(
        self, request: web.BaseRequest, protocol: str | None, writer: WebSocketWriter
    ) -> None:
        # aiohttp's own, with another queue: it lets nobody say of which class
        self._ws_protocol = protocol
        self._writer = writer
        loop = asyncio.get_running_loop()
        self.inbox = Inbox(request.protocol, _UNREAD_BYTES, loop=loop)
        self.inbox.heard_s, self.inbox.takes_note = time.monotonic(), False
        self._reader = self.inbox
        self._parser = WebSocketReader(self.inbox, MAX_FRAME_BYTES, False, decode_text=True)
        request.protocol.set_parser(self._parser)
        request.protocol.keep_alive(False)


def framed(text: str) -> bytes:
    """A text frame as a server sends it (RFC 6455, section 5.2)."""
    payload = text.encode()
    size = len(payload)
    if size < _SHORT:
        head = bytes((0x81, size))
    elif size < _MEDIUM:
        head = b"\x81\x7e" + size.to_bytes(2, "big")
    else:
        head = b"\x81\x7f" + size.to_bytes(8, "big")
    return head + payload


def closing(code: int = 1000) -> bytes:
    """A frame that says that nothing comes after it."""
    return b"\x88\x02" + code.to_bytes(2, "big")
