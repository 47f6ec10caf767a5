"""`GET /events` as a reader of it has it: events with their ids, from where one left off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from aegis_protocol.events import Connected, KeepAlive, Reset
from aegis_protocol.fleet_events import FLEET_EVENT, FLEET_TYPES, FleetEvent
from control_fixtures import Client

Event = TypeVar("Event", bound=FleetEvent)

WITHIN_S = 20.0


@dataclass
class Stream:
    """`GET /events` being read. seen: every event so far, with its id."""

    answer: aiohttp.ClientResponse
    seen: list[tuple[int | None, FleetEvent]] = field(default_factory=list)

    @property
    def cursor(self) -> int:
        return next(number for number, _ in reversed(self.seen) if number is not None)

    @property
    def told(self) -> list[int]:
        """The ids of what was news, in order."""
        return [n for n, event in self.seen if n is not None and event.type in FLEET_TYPES]

    def of(self, kind: type[Event]) -> list[Event]:
        """What there was of this kind so far."""
        return [event for _, event in self.seen if isinstance(event, kind)]

    async def next(self) -> FleetEvent | None:
        number, data = None, None
        async with asyncio.timeout(WITHIN_S):
            while line := await self.answer.content.readline():
                text = line.decode().rstrip("\n")
                if text.startswith("id: "):
                    number = int(text[4:])
                elif text.startswith("data: "):
                    data = text[6:]
                elif text == "" and data is not None:
                    event = FLEET_EVENT.validate_json(data)
                    self.seen.append((number, event))
                    return event
        return None

    async def until(
        self, kind: type[Event], fits: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        while (event := await self.next()) is not None:
            if isinstance(event, kind) and fits(event):
                return event
        raise AssertionError(f"the stream ended without {kind.__name__}")

    async def current(self) -> list[FleetEvent]:
        """What is told up to the keepalive that ends the beginning, without the frame around."""
        await self.until(KeepAlive)
        return [e for _, e in self.seen if not isinstance(e, Connected | KeepAlive | Reset)]


@asynccontextmanager
async def listening(
    client: Client,
    query: str = "",
    *,
    after: int | None = None,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Stream]:
    given = {} if client.key is None else {"Authorization": f"Bearer {client.key}"}
    if after is not None:
        given["Last-Event-ID"] = str(after)
    url = f"{client.base_url}/events{query}"
    async with client.session.get(url, headers=given | (headers or {})) as answer:
        assert answer.status == 200, await answer.text()
        yield Stream(answer)
