"""
One open stream of server-sent events: written to in time, or cut.

What is written waits in the connection's buffer (64 KiB, and the kernel's). A reader that takes
nothing for 20 s is cut off there and then: nothing more is kept for it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aegis_protocol.failures.http import BadRequest
from aiohttp import hdrs, web
from pydantic import BaseModel

from aegis_control.http.desk import keep
from aegis_control.log import get_logger

log = get_logger("events")

HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.CONNECTION: "keep-alive",
    "X-Accel-Buffering": "no",
}
WRITE_S: Final = 20.0


class ReaderGone(Exception):
    """Whoever read this stream left, or was cut off."""


class Sse:
    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request

    @property
    def left(self) -> bool:
        """Whether the reader closed the connection."""
        return self._request.transport is None or self._request.transport.is_closing()

    async def open(self) -> None:
        keep(self._request)
        try:
            await self.response.prepare(self._request)
        except ConnectionError as exc:
            raise ReaderGone from exc

    async def write(self, data: bytes) -> None:
        """Write whole events. Raises ReaderGone; the connection is cut then."""
        try:
            async with asyncio.timeout(WRITE_S):
                await self.response.write(data)
        except TimeoutError as exc:
            log.info("stream.reader_stalled", path=self._request.path, after_s=WRITE_S)
            self.cut()
            raise ReaderGone from exc
        except ConnectionError as exc:
            raise ReaderGone from exc

    def cut(self) -> None:
        """Drop the connection with all that waits in it."""
        if self._request.transport is not None:
            self._request.transport.abort()


def event_text(event: BaseModel, event_type: str, event_id: int | None) -> bytes:
    lines = [f"event: {event_type}", f"data: {event.model_dump_json()}", "", ""]
    if event_id is not None:
        lines.insert(0, f"id: {event_id}")
    return "\n".join(lines).encode()


def last_event_id(request: web.Request) -> int | None:
    """The cursor that the reader comes back with. BadRequest for what is none."""
    text = request.headers.get("Last-Event-ID")
    if text is None or text == "":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest("Last-Event-ID: the id of an event of this stream", field="Last-Event-ID")
    return int(text)
