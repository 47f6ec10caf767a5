"""
The hops on the way to an agent, and which of them an error speaks of.

    control      its HTTP API answers
    grant        control, and then the agent, allow what is asked for
    signalling   the offer reaches the agent, and its answer comes back
    ice          packets find a way between the two machines
    dtls         the peer proves who it is, and the link opens
    agent        it answers on the open link
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import GrantError
from aegis_protocol.failures.http import (
    AgentOffline,
    ControlAnswerInvalid,
    ControlUnreachable,
    RateLimited,
    Unavailable,
)
from aegis_protocol.failures.link import (
    FingerprintMismatch,
    HandshakeFailed,
    LinkNotOpened,
    LinkUnreachable,
    NoCandidates,
    RelayUnavailable,
    RpcTimedOut,
)

from aegis_client.failures import AnswerOverdue


class Hop(StrEnum):
    CONTROL = "control"
    GRANT = "grant"
    SIGNALLING = "signalling"
    ICE = "ice"
    DTLS = "dtls"
    AGENT = "agent"


class Attempt:
    """One attempt to reach an agent: the hop that it is at, and the time that it has left."""

    def __init__(self, limit_s: float) -> None:
        self.took_s: dict[Hop, float] = {}
        """How long each hop that was passed has taken."""
        self._hop = Hop.CONTROL
        self._since = time.monotonic()  # finer than the loop's clock may be
        self._limit_s = limit_s
        self._ends_at = asyncio.get_running_loop().time() + limit_s

    @property
    def hop(self) -> Hop:
        return self._hop

    def reach(self, hop: Hop) -> None:
        """The hop before is passed."""
        now = time.monotonic()
        self.took_s[self._hop] = self.took_s.get(self._hop, 0.0) + now - self._since
        self._hop, self._since = hop, now

    def divide(self, hop: Hop, first_s: float, then: Hop) -> None:
        """Of the time that `hop` was passed in, what came after `first_s` was of the hop `then`."""
        whole_s = self.took_s[hop]
        self.took_s[hop] = min(first_s, whole_s)
        self.took_s[then] = self.took_s.get(then, 0.0) + whole_s - self.took_s[hop]

    def arrive(self) -> None:
        """The last hop is passed."""
        self.reach(self._hop)

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends_at - asyncio.get_running_loop().time())

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """
        Run the body within what is left. An error out of it has the fact `hop`; at the limit it
        is the hop's own error.
        """
        try:
            async with asyncio.timeout_at(self._ends_at):
                yield
        except TimeoutError as exc:
            raise self._tagged(self._overdue()) from exc
        except AegisError as exc:
            self._tagged(exc)
            raise

    def _tagged(self, error: AegisError) -> AegisError:
        error.facts["hop"] = str(hop_of(error, self.hop))
        return error

    def _overdue(self) -> AegisError:
        within = f"within {self._limit_s:g} s"
        match self.hop:
            case Hop.CONTROL | Hop.GRANT:
                return ControlUnreachable(f"control gave no grant {within}")
            case Hop.SIGNALLING:
                return AnswerOverdue(f"the agent's answer did not come {within}")
            case Hop.ICE | Hop.DTLS:
                return LinkNotOpened(f"the link was not open {within}")
            case Hop.AGENT:
                return RpcTimedOut(f"the agent did not answer {within}")


def hop_of(error: AegisError, reached: Hop) -> Hop:
    """Return the hop that failed with `error` in an attempt that had come to `reached`."""
    if isinstance(error, LinkNotOpened):
        progress = error.facts.get("progress")
        found_way = isinstance(progress, dict) and progress.get("ice") == "completed"
        return Hop.DTLS if found_way else Hop.ICE
    for hop, classes in _OF_CLASS:
        if isinstance(error, classes):
            return hop
    if error.code.startswith("agent."):
        return Hop.AGENT
    # Control answered, and what it said was no.
    return Hop.GRANT if reached is Hop.CONTROL else reached


_OF_CLASS: Final[tuple[tuple[Hop, tuple[type[AegisError], ...]], ...]] = (
    (Hop.CONTROL, (ControlUnreachable, Unavailable, RateLimited, ControlAnswerInvalid)),
    (Hop.GRANT, (GrantError,)),
    (Hop.SIGNALLING, (AnswerOverdue,)),
    (Hop.ICE, (NoCandidates, RelayUnavailable, LinkUnreachable)),
    (Hop.DTLS, (HandshakeFailed, FingerprintMismatch)),
    (Hop.AGENT, (AgentOffline,)),
)
