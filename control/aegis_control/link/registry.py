"""Which agents have a live link, here or at another replica; since when the rest have none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from aegis_protocol.failures.http import LinkSuperseded

from aegis_control.link.link import Link
from aegis_control.link.linked import Linked, OtherLink
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics

log = get_logger("link")


class Links:
    """on_change: called when an agent came, went or said something new of itself."""

    def __init__(self, metrics: Metrics, *, on_change: Callable[[], None]) -> None:
        self._links: dict[str, Link] = {}
        self._others: dict[str, OtherLink] = {}
        self._down_since: dict[str, float] = {}
        self._arriving: Counter[str] = Counter()
        self._metrics = metrics
        self._on_change = on_change
        self.version = 0
        """Another one whenever an agent came, went or said something new of itself."""

    def all(self) -> Mapping[str, Linked]:
        """Every agent's link, wherever it is."""
        return {**self._others, **self._links}

    def own(self) -> Mapping[str, Link]:
        """Those that this replica has."""
        return dict(self._links)

    def is_current(self, link: Link) -> bool:
        return self._links.get(link.agent_id) is link

    def find(self, agent_id: str) -> Linked | None:
        return self._links.get(agent_id) or self._others.get(agent_id)

    def find_own(self, agent_id: str) -> Link | None:
        return self._links.get(agent_id)

    def is_there(self, agent_id: str) -> bool:
        """Tell whether the agent has a link, or is being welcomed on a new one."""
        return self.find(agent_id) is not None or self.is_arriving(agent_id)

    def is_arriving(self, agent_id: str) -> bool:
        """Tell whether the agent is being welcomed here."""
        return agent_id in self._arriving

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
        self.version += 1
        return True

    def add(self, link: Link) -> None:
        """Make `link` the agent's own; of two, the one with the higher epoch stays."""
        present = self._links.get(link.agent_id)
        if present is not None and present.epoch > link.epoch:
            self._superseded(link)
            return
        if present is not None:
            self._superseded(present)
        other = self._others.get(link.agent_id)
        if other is not None and other.epoch > link.epoch:
            self._superseded(link)
            return
        self._others.pop(link.agent_id, None)
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
        if agent_id in self._links or agent_id in self._others:
            return 0.0
        since = self._down_since.setdefault(agent_id, time.monotonic())
        return time.monotonic() - since

    def close_older(self, agent_id: str, epoch: int) -> None:
        """The agent's newest link is of this epoch: close ours, should it be older."""
        own = self._links.get(agent_id)
        if own is not None and own.epoch < epoch:
            del self._links[agent_id]
            self._superseded(own)
            self.changed()

    def other_has(self, other: OtherLink) -> None:
        """Another replica has the agent's link."""
        own = self._links.get(other.agent_id)
        if own is not None and own.epoch >= other.epoch:
            return
        self._others[other.agent_id] = other
        self._down_since.pop(other.agent_id, None)
        self.changed()

    def nobody_has(self, agent_id: str, *, for_s: float) -> None:
        """The agent has no link anywhere, for so long already."""
        if agent_id in self._links:
            return
        self._down_since[agent_id] = time.monotonic() - for_s
        if self._others.pop(agent_id, None) is not None:
            self.changed()

    def changed(self) -> None:
        self.version += 1
        self._metrics.agents_online.set(len(self._links))
        self._on_change()

    def _superseded(self, link: Link) -> None:
        link.close(
            LinkSuperseded("another process linked up with this agent's key"), cause="superseded"
        )
