"""
What other replicas do for our agents, and we for theirs: their links, and frames between us.

Woken by words (`link`, `frame`), it reads from the store what they speak of, and all of it when
words may have been missed.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aegis_protocol.failures.http import AgentOffline
from sqlalchemy.exc import DBAPIError

from aegis_control.bus import EVERYTHING
from aegis_control.hub import set_within
from aegis_control.link.linked import OtherLink
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.store import agent_frames, agent_links, clock
from aegis_control.store.agent_links import LinkRecord
from aegis_control.store.database import Database

log = get_logger("link")

_AFTER_TROUBLE_S: Final = 1.0


class Others:
    def __init__(self, database: Database, links: Links) -> None:
        self._database = database
        self._links = links
        self._news: set[str] = set()
        self._frames: set[str] = set()
        self._woken = asyncio.Event()
        database.bus.subscribe("link", self._on_link)
        database.bus.subscribe("frame", self._on_frame)

    async def run(self, stopping: asyncio.Event) -> None:
        """Look whenever there is news, until `stopping` is set, and a word is heard after it."""
        while not stopping.is_set():
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.look()
            except DBAPIError as exc:
                log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
                self._on_link(EVERYTHING)
                self._on_frame(EVERYTHING)
                await set_within(stopping, _AFTER_TROUBLE_S)

    def wake(self) -> None:
        self._woken.set()

    async def look_at_all(self) -> None:
        """Take in everything."""
        self._on_link(EVERYTHING)
        await self.look()

    async def look(self) -> None:
        """Take in what there is news of."""
        news, self._news = self._news, set()
        if news:
            await self._look_at_links(None if EVERYTHING in news else news)
        frames, self._frames = self._frames, set()
        if frames:
            await self._fetch_frames(None if EVERYTHING in frames else frames)

    async def _look_at_links(self, agent_ids: set[str] | None) -> None:
        known = self._links.all().keys()
        async with self._database.read() as conn:
            records = await agent_links.look(conn, agent_ids)
            now_s = await clock.now_s(conn)
        for record in records.values():
            self._learn(record, now_s)
        for agent_id in (known if agent_ids is None else known & agent_ids) - records.keys():
            self._links.nobody_has(agent_id, for_s=0.0)
        if agent_ids is None:
            self._links.changed()

    def _learn(self, record: LinkRecord, now_s: float) -> None:
        self._links.close_older(record.agent_id, record.epoch)
        # A replica lives until it is buried: when the store was away, nobody has said so lately.
        alive = record.replica_seen is not None and record.ended_at is None
        ours = record.replica_id == self._database.replica_id
        if alive and not ours:
            known = self._links.find(record.agent_id)
            if (
                isinstance(known, OtherLink)
                and (known.replica_id, known.epoch) == (record.replica_id, record.epoch)
                and known.facts == record.facts
            ):
                return
            self._links.other_has(
                OtherLink.read(record.agent_id, record.replica_id, record.epoch, record.facts)
            )
        elif not alive:
            since_s = record.ended_at or record.replica_seen or now_s
            self._links.nobody_has(record.agent_id, for_s=max(0.0, now_s - since_s))

    async def _fetch_frames(self, agent_ids: set[str] | None) -> None:
        """Send our agents what other replicas have for them."""
        own = self._links.own()
        wanted = own.keys() if agent_ids is None else own.keys() & agent_ids
        if not wanted:
            return
        async with self._database.read() as conn:
            waiting = await agent_frames.waiting(conn, wanted)
        for agent_id in waiting:
            link = own[agent_id]
            async with self._database.write() as conn:
                now_s = await clock.now_s(conn)
                frames = await agent_frames.take(conn, agent_id, link.epoch, now_s=now_s)
            try:
                for frame in frames:
                    link.send(frame)
            except AgentOffline as exc:
                log.warning("frame.lost", agent_id=agent_id, detail=exc.message)

    def _on_link(self, agent_id: str) -> None:
        self._news.add(agent_id)
        self._woken.set()

    def _on_frame(self, agent_id: str) -> None:
        self._frames.add(agent_id)
        self._woken.set()
