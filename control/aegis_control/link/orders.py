"""Frames to agents, wherever their links are."""

from __future__ import annotations

from aegis_protocol.control_link import ToAgent

from aegis_control.link.registry import Links


class Orders:
    def __init__(self, links: Links) -> None:
        self._links = links

    async def send(self, agent_id: str, frame: ToAgent) -> None:
        """
        Put `frame` on its way to the agent.

        Raises AgentOffline when it has no link, or one that does not keep up.
        """
        self._links.get(agent_id).send(frame)
