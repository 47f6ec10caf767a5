"""Frames to agents, wherever their links are."""

from __future__ import annotations

from aegis_protocol.control_link import ToAgent
from aegis_protocol.failures.http import AgentOffline

from aegis_control.bus import tell
from aegis_control.link.registry import Links
from aegis_control.store import agent_frames, clock
from aegis_control.store.database import Database


class Orders:
    def __init__(self, database: Database, links: Links) -> None:
        self._database = database
        self._links = links

    async def send(self, agent_id: str, frame: ToAgent) -> None:
        """
        Put `frame` on its way to the agent; not to be called within a transaction.

        A link that another replica has gets it through the store, within a minute or never.
        Raises AgentOffline when the agent has no link, or one that does not keep up.
        """
        own = self._links.find_own(agent_id)
        if own is not None:
            own.send(frame)
            return
        if not self._links.is_there(agent_id):
            raise AgentOffline("the agent has no link to control right now", agent_id=agent_id)
        async with self._database.write() as conn:
            await agent_frames.add(conn, agent_id, frame, now_s=await clock.now_s(conn))
            await tell(conn, "frame", agent_id)
