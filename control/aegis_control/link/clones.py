"""
One agent's key in two processes: they take the link from each other for ever, until it is seen.

Every process of an agent names itself in `hello` (`instance`, made up at its start). A process that
was superseded by another and comes back was alive all the while, so both are: an agent that is
restarted, however often, never does that, nor one whose network flaps. After more than three such
changes within a minute the agent is quarantined: the process that has the link keeps it, so that
what runs there can end, and takes no new job; the other is refused until that one is gone. The
operator reads why in `list-agents`, and `reset-agent` lifts it.

What counts lies in the store, so that it is seen when the two meet different replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from aegis_protocol.control_link import Hello
from aegis_protocol.failures.http import AgentKeyCloned
from aegis_protocol.states import Order

from aegis_control.jobs import Change, Jobs
from aegis_control.log import get_logger
from aegis_control.ordering import take_back
from aegis_control.store import agent_links, agents, audit
from aegis_control.store.agents import AgentRecord
from aegis_control.store.audit import Act

log = get_logger("link")

WINDOW_S: Final = 60.0
MAX_CHANGES: Final = 3
"""Within the window; one more is a quarantine."""
_KEPT: Final = 16
_ALIVE_S: Final = 30.0
"""An agent that was heard within this time may come back; one that has its link lives anyway."""


@dataclass(frozen=True)
class Arrival:
    """One hello: when, of which process, from which address."""

    at: float
    instance: str
    address: str


def flaps(arrivals: Sequence[Arrival]) -> bool:
    """Tell whether two processes that both live took the link from each other too often."""
    changes, returns = 0, 0
    for number in range(1, len(arrivals)):
        if arrivals[number].instance != arrivals[number - 1].instance:
            changes += 1
            returns += any(
                arrivals[number].instance == before.instance for before in arrivals[: number - 1]
            )
    return changes > MAX_CHANGES and returns > 0


async def watch(ledger: Jobs, record: AgentRecord, hello: Hello, *, address: str) -> None:
    """
    Note that an agent's process arrives, and quarantine the agent when it is one of two.

    Raises AgentKeyCloned when it may not have the link.
    """
    if hello.instance is None:
        return
    async with ledger.change() as change:
        now_s = change.now_s
        known = await agents.lock(change.conn, record.id)
        if known is None:
            return
        past = [Arrival(**kept) for kept in known.arrivals]
        if _by_another(known, past, hello.instance) and await _lives(change, known):
            raise _refusal(known)
        arrivals = [a for a in past if now_s - a.at < WINDOW_S][-_KEPT + 1 :]
        arrivals.append(Arrival(now_s, hello.instance, address))
        cloned = flaps(arrivals)
        if cloned:
            await _quarantine(change, known, arrivals)
            arrivals = past[-1:]  # whoever has the link keeps it
        await agents.set_arrivals(
            change.conn,
            record.id,
            [asdict(arrival) for arrival in arrivals],
            cloned=cloned or (known.cloned and known.ordered is Order.QUARANTINED),
        )
    if cloned:
        raise _refusal(known)


def _by_another(known: AgentRecord, past: Sequence[Arrival], instance: str) -> bool:
    """Whether another process than `instance` had the link last of an agent known to be two."""
    if not known.cloned or known.ordered is not Order.QUARANTINED or not past:
        return False
    return past[-1].instance != instance


async def _lives(change: Change, known: AgentRecord) -> bool:
    """Whether the process that had the link last has it still, or had it lately."""
    if known.last_seen is not None and change.now_s - known.last_seen < _ALIVE_S:
        return True
    return await agent_links.is_up(change.conn, known.id)


async def _quarantine(change: Change, known: AgentRecord, arrivals: Sequence[Arrival]) -> None:
    places = sorted({arrival.address for arrival in arrivals})
    reason = (
        "two processes use this agent's key, at "
        + (" and ".join(places[:2]) if len(places) > 1 else f"the same address {places[0]}")
        + ": enrol one of them afresh, then reset-agent"
    )
    ordered = await agents.set_ordered(change.conn, known.id, Order.QUARANTINED, reason)
    if ordered is not None:
        await take_back(change, ordered)
    facts = {"reason": reason, "addresses": places[:8]}
    act = Act(what="agent.quarantined", agent_id=known.id, outcome="cloned", facts=facts)
    await audit.record(change.conn, act, now_s=change.now_s)
    log.warning("agent.key_cloned", agent_id=known.id, name=known.name, addresses=places[:8])


def _refusal(known: AgentRecord) -> AgentKeyCloned:
    return AgentKeyCloned(
        f"another process has the link of {known.name} with this same key", agent_id=known.id
    )
