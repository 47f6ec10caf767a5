"""
One of several processes that serve the same store: it says that it lives, and buries the dead.

A replica that says nothing for ten seconds is dead. Whoever sees it first takes it out, and tells
the clients of its agents that these have no link; an agent that found another replica in the
meantime has a newer link, and nobody is told anything. One that was only standing still finds
itself buried and has its agents link up anew.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from aegis_protocol import __version__
from aegis_protocol.events import Closed
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import Unavailable
from sqlalchemy.exc import DBAPIError

from aegis_control.bus import tell
from aegis_control.fleet_news import tell_agents
from aegis_control.hub import set_within
from aegis_control.jobs import Change, Jobs
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.store import agent_frames, agent_links, clock, jobs, replicas
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE
from aegis_control.store.replicas import BEAT_S, DEAD_S

log = get_logger("replica")

_TIDY_EVERY: Final = 5
"""Beats."""


class Replica:
    """
    address   where it listens
    on_death  called when another replica died
    """

    def __init__(
        self,
        database: Database,
        ledger: Jobs,
        links: Links,
        *,
        address: str,
        on_death: Callable[[], None],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._links = links
        self._address = address
        self._on_death = on_death
        self._beat_at = time.monotonic()
        self._steady_since = self._beat_at - DEAD_S

    @property
    def id(self) -> str:
        return self._database.replica_id

    async def join(self) -> None:
        """Be known to the others."""
        async with self._database.alone("replicas"), self._database.write() as conn:
            await replicas.join(
                conn,
                self.id,
                name=f"{socket.gethostname()}:{os.getpid()}",
                version=__version__,
                address=self._address,
                alone=not self._database.shared,
                now_s=await clock.now_s(conn),
            )
        log.info("replica.joined", replica=self.id)

    async def leave(self) -> None:
        """Be known no more; our agents have no link from now on."""
        try:
            async with self._database.write() as conn:
                gone = await replicas.leave(conn, self.id, now_s=await clock.now_s(conn))
                for agent_id in gone:
                    await tell(conn, "link", agent_id)
                await tell_agents(conn, gone, now_s=time.time())
        except DBAPIError as exc:  # the others will find out
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400

    async def run(self, stopping: asyncio.Event) -> None:
        """Beat until `stopping` is set."""
        beats = 0
        while not await set_within(stopping, BEAT_S):
            try:
                await self.beat()
                beats += 1
                if beats % _TIDY_EVERY == 0:
                    await self._tidy()
            except DBAPIError as exc:
                log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400

    async def beat(self) -> None:
        """
        Say that we live, and bury whoever does not.

        Nobody is buried before our own beats have come through for as long as others may be
        silent: while the store was away, they could not say that they live.
        """
        async with self._ledger.change() as change:
            now_s = await clock.now_s(change.conn)
            known = await replicas.beat(change.conn, self.id, now_s=now_s)
            bury = self._is_steady()
            buried = await replicas.bury(change.conn, now_s=now_s) if bury else ()
            await self._tell_gone(change, (a for _, agent_ids in buried for a in agent_ids))
        for record, agent_ids in buried:
            log.warning("replica.died", replica=record.id, name=record.name, agents=len(agent_ids))
        if buried:
            self._on_death()
        if not known:
            log.warning("replica.was_given_up")
            await self.join()
            for link in self._links.own().values():
                link.close(Unavailable("control stood still for too long"), cause="given_up")

    def _is_steady(self) -> bool:
        """Note that a beat came through; tell whether they do without a gap, and for how long."""
        now = time.monotonic()
        if now - self._beat_at > DEAD_S / 2:
            self._steady_since = now
        self._beat_at = now
        return now - self._steady_since >= DEAD_S

    async def _tidy(self) -> None:
        """End what the store believes of our links and is not so, and forget old frames."""
        own = self._links.own()
        async with self._ledger.change() as change:
            now_s = await clock.now_s(change.conn)
            await agent_frames.forget(change.conn, now_s=now_s)
            over = [
                agent_id
                for agent_id in await agent_links.of_replica(change.conn, self.id)
                if agent_id not in own and not self._links.is_there(agent_id)
            ]
            for agent_id in over:
                await agent_links.end(change.conn, agent_id, self.id, now_s=now_s)
            await self._tell_gone(change, over)

    async def _tell_gone(self, change: Change, agent_ids: Iterable[str]) -> None:
        """Tell the clients of these agents' jobs that they have no link any more."""
        gone_ids = tuple(agent_ids)
        await tell_agents(change.conn, gone_ids, now_s=change.now_s)
        for agent_id in gone_ids:
            await tell(change.conn, "link", agent_id)
            gone = AgentGone("the agent lost its link to control", agent_id=agent_id)
            for job in await jobs.in_states(change.conn, LIVE, agent_id=agent_id):
                await change.tell(job.id, Closed(job_id=job.id, error=gone.body()))
