"""A terminal or console, viewed over as many connections as it takes: no byte lost or doubled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from aegis_links.streams import StreamViewer
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import LinkError
from aegis_protocol.frames import StreamGap, StreamOutput

from aegis_client.changes import Changes
from aegis_client.connection import LOST
from aegis_client.session import Session


class ResumedView:
    """
    A stream of the job: iterate over it once; it ends after the stream's last byte.

    Raises the session's failure where the connection is lost for good.
    """

    def __init__(
        self, session: Session, channel: ChannelName, stream: int, *, from_offset: int = 0
    ) -> None:
        self.offset = from_offset
        """Of what comes next."""
        self._session, self._channel, self._stream = session, channel, stream
        self._viewer: StreamViewer | None = None
        self._changes = Changes()

    async def __aiter__(self) -> AsyncGenerator[StreamOutput | StreamGap, None]:
        while True:
            connection = await self._session.link.connection()
            try:
                port = connection.streams(self._channel)
                async with port.view(self._stream, from_offset=self.offset) as viewer:
                    self._set(viewer)
                    async for event in viewer:
                        self.offset = viewer.offset
                        yield event
                return
            except LOST:
                if not await self._session.link.lost(connection):
                    raise
            finally:
                self._set(None)

    async def send_input(self, data: bytes) -> None:
        """Type `data`; while there is no connection, as soon as there is one."""
        await self._sent(lambda viewer: viewer.send_input(data))

    async def resize(self, cols: int, rows: int) -> None:
        await self._sent(lambda viewer: viewer.resize(cols, rows))

    async def _sent(self, send: Callable[[StreamViewer], Awaitable[None]]) -> None:
        failed: StreamViewer | None = None

        def next_viewer() -> StreamViewer | None:
            return self._viewer if self._viewer is not failed else None

        while True:
            viewer = await self._changes.until(next_viewer)
            try:
                return await send(viewer)
            except LinkError:
                # The iteration tells what became of the link; this waits for the next one.
                failed = viewer

    def _set(self, viewer: StreamViewer | None) -> None:
        self._viewer = viewer
        self._changes.wake()
