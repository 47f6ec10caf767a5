"""Which agents have a live link, and since when the others have none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from aegis_protocol.failures.http import AgentOffline, LinkSuperseded

from aegis_control.link.link import Link
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics

log = get_logger("link")


class Links:
    """on_change: called when an agent came, went or said something new of itself."""

    def __init__(self, metrics: Metrics, *, on_change: Callable[[], None]) -> None:
        self._links: dict[str, Link] = {}
        self._down_since: dict[str, float] = {}
        self._arriving: Counter[str] = Counter()
        self._metrics = metrics
        self._on_change = on_change

    def all(self) -> Mapping[str, Link]:
        return dict(self._links)

    def is_current(self, link: Link) -> bool:
        return self._links.get(link.agent_id) is link

    def find(self, agent_id: str) -> Link | None:
        return self._links.get(agent_id)

    def get(self, agent_id: str) -> Link:
        """Return the agent's link. AgentOffline when it has none."""
        link = self._links.get(agent_id)
        if link is None:
            raise AgentOffline("the agent has no link to control right now", agent_id=agent_id)
        return link

    def is_there(self, agent_id: str) -> bool:
        """Tell whether the agent has a link, or is being welcomed on a new one."""
        return agent_id in self._links or agent_id in self._arriving

    @contextmanager
    def arriving(self, agent_id: str) -> Iterator[None]:
        """While the block lasts the agent is being welcomed."""
        self._arriving[agent_id] += 1
        try:
            yield
        finally:
            self._arriving[agent_id] -= 1
            if not self._arriving[agent_id]:
                del self._arriving[agent_id]

    def supersede(self, agent_id: str) -> bool:
        """Close the agent's link because a newer `hello` is here; False when it has none."""
        if agent_id not in self._links:
            return False
        self._down_since[agent_id] = time.monotonic()
        self._superseded(self._links.pop(agent_id))
        return True

    def add(self, link: Link) -> None:
        """Make `link` the agent's own; of two, the one with the higher epoch stays."""
        present = self._links.get(link.agent_id)
        if present is not None and present.epoch > link.epoch:
            self._superseded(link)
            return
        if present is not None:
            self._superseded(present)
        self._links[link.agent_id] = link
        self._down_since.pop(link.agent_id, None)
        self.changed()

    def remove(self, link: Link) -> bool:
        """Take an ended link out; False when a newer one has its place already."""
        if not self.is_current(link):
            return False
        del self._links[link.agent_id]
        self._down_since[link.agent_id] = time.monotonic()
        self.changed()
        return True

    def expect(self, agent_ids: Iterable[str]) -> None:
        """These had links before control restarted: their grace begins now."""
        for agent_id in agent_ids:
            if agent_id not in self._links:
                self._down_since.setdefault(agent_id, time.monotonic())

    def down_s(self, agent_id: str) -> float:
        """For how long the agent has had no link; 0 while it has one."""
        if agent_id in self._links:
            return 0.0
        since = self._down_since.setdefault(agent_id, time.monotonic())
        return time.monotonic() - since

    def changed(self) -> None:
        self._metrics.agents_online.set(len(self._links))
        self._on_change()

    def _superseded(self, link: Link) -> None:
        link.close(
            LinkSuperseded("another process linked up with this agent's key"), cause="superseded"
        )
