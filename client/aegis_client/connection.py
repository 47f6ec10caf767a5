"""One connection to an agent: its requests, its channels, and the doubt whether it still lives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Final, TypeVar

import structlog
from aegis_links.streams import StreamPort
from aegis_links.transfers import TransferPort
from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import ControlAnswerInvalid
from aegis_protocol.failures.link import ChannelClosed, LinkClosed, PeerGone, RpcTimedOut
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.model import Wire
from aegis_protocol.rpc import LinkMeasureParams, LinkMeasureResult
from pydantic import ValidationError

from aegis_client.handshake import Greeted
from aegis_client.signals import Signals

DOUBT_S: Final = 6.0
"""How long an agent that control has lost may leave a question unanswered."""

LOST: Final = (PeerGone, LinkClosed, ChannelClosed)
"""What a link that is lost ends its requests, transfers and streams with."""

_log = structlog.get_logger("aegis_client.connection")

W = TypeVar("W", bound=Wire)


class Connection:
    """A link that is up, greeted, with its channels taken over by `open_ports`."""

    def __init__(self, greeted: Greeted, grant: GrantReply) -> None:
        self.grant = grant
        self.agent = greeted.agent
        self.hello = greeted.hello
        self.link = greeted.link
        self.answer_sdp = greeted.answer_sdp
        self.took_s = greeted.took_s
        self._rpc = greeted.rpc
        self._transfers: dict[ChannelName, TransferPort] = {}
        self._streams: dict[ChannelName, StreamPort] = {}

    @property
    def source(self) -> TransferPort:
        return self._transfers[ChannelName.SOURCE]

    @property
    def firmware(self) -> TransferPort:
        return self._transfers[ChannelName.FIRMWARE]

    def streams(self, channel: ChannelName) -> StreamPort:
        """The port on `pty` or `serial`."""
        return self._streams[channel]

    @property
    def over(self) -> bool:
        """Nothing can be asked any more."""
        return self._rpc.closed

    async def call(
        self, method: str, params: Wire, result: type[W], *, deadline_s: float = 60.0
    ) -> W:
        """Request `method`; the agent's error comes as its own class."""
        answer = await self._rpc.request(
            method, params.model_dump(mode="json", exclude_none=True), deadline_s=deadline_s
        )
        try:
            return result.model_validate(answer)
        except ValidationError as exc:
            raise ControlAnswerInvalid(
                f"the agent's answer to {method} is no {result.__name__}",
                remedy="Compare `--version` on both sides.",
            ) from exc

    async def open_ports(self, stack: AsyncExitStack, channels: Iterable[ChannelName]) -> None:
        """Take over the reading of `channels`, until `stack` is closed."""
        for name in channels:
            match name:
                case ChannelName.SOURCE | ChannelName.FIRMWARE:
                    port = TransferPort.over(self.link.channel(name))
                    self._transfers[name] = await stack.enter_async_context(port)
                case ChannelName.PTY | ChannelName.SERIAL:
                    streams = StreamPort.over(self.link.channel(name))
                    self._streams[name] = await stack.enter_async_context(streams)
                case ChannelName.ESPCTL:
                    pass

    async def wait_over(self) -> None:
        """Return when the link has ended and its last notification was taken."""
        await self._rpc.wait_closed()
        # The last notifications are taken by a task that was woken before this one.
        await asyncio.sleep(0)

    async def doubt(self, signals: Signals) -> None:
        """
        Each time control says that the agent is gone, ask the agent itself; end the link when it
        does not answer. Any answer will do, a refusal too.
        """
        doubted: AegisError | None = None

        def news() -> AegisError | None:
            return signals.closed if signals.closed is not doubted else None

        while True:
            doubted = await signals.until(news)
            try:
                await self.call(
                    "link.measure", LinkMeasureParams(), LinkMeasureResult, deadline_s=DOUBT_S
                )
            except RpcTimedOut:
                gone = PeerGone("it has left control, and does not answer here either")
                await self.link.close(gone)
                return
            except AegisError as exc:
                _log.info("agent.doubted", code=exc.code)
