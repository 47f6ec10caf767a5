"""
Relayed addresses: one from the first TURN server that gives one, or why none did; and giving them
back.

ICE itself would ask one server with one user name, and keep to itself what went wrong. Here those
that answered are asked in order, each with its own credentials. Where these are refused, others
for the same server come next: control hands out two while its secret changes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from aegis_protocol.failures.link import (
    RelayExpired,
    RelayRefused,
    RelayUnavailable,
    RelayUnreachable,
)
from aioice import Candidate
from aioice.ice import Connection, StunProtocol, relayed_candidate
from aioice.stun import TransactionFailed, TransactionTimeout
from aioice.turn import TurnTransport

from aegis_links.ice_servers import LiveServers, ServerAddress, those_that_answer
from aegis_links.uninterrupted import uninterrupted

ASK_DEADLINE_S: Final = 5.0
"""For all that are asked; each is given half of what is left of it, while others wait."""
MOST_ASKED: Final = 4
GIVE_BACK_LIMIT_S: Final = 1.0

_COMPONENT: Final = 1  # RTP, as RFC 8445 has it; data channels have no other
_UNAUTHORIZED: Final = 401  # RFC 8489 section 14.8
_WRONG_CREDENTIALS: Final = 441  # RFC 8656 section 19
_NO_CODE: Final = (0, "no reason given")  # of a server that breaks RFC 8489 section 6.3.4
_log = structlog.get_logger("aegis_links.relay")


async def add_relayed(
    connection: Connection, servers: LiveServers, *, hides_address: bool
) -> RelayUnavailable | None:
    """
    Give `connection` a relayed address to offer, and return None; else return what is wrong with
    the first server, or with all where none answers. At once without a TURN server. Never raises.

    hides_address  the peer is not shown the address that the server sees
    """
    if not servers.turns:
        return _none_answers(servers) if servers.turn_refusals else None
    waiting, unheard = list(servers.turns), list(servers.turns_unheard)
    first: RelayUnavailable | None = None
    clock = asyncio.get_running_loop().time
    until = clock() + ASK_DEADLINE_S
    for _ in range(MOST_ASKED):
        if not waiting:
            waiting, unheard = await those_that_answer(unheard[:MOST_ASKED], servers.tls), []
        left_s = until - clock()
        if not waiting or left_s <= 0:
            break
        asked = waiting.pop(0)
        elsewhere = [turn for turn in waiting if turn.place != asked.place]
        limit_s = left_s / 2 if elsewhere or unheard else left_s
        refused = await _ask(connection, asked, servers, limit_s, hides_address=hides_address)
        if refused is None:
            return None
        first = first or refused
        _log.info("relay.refused", code=refused.code, reason=refused.message)
        if isinstance(refused, RelayUnreachable):
            waiting = elsewhere  # other credentials do not wake it
        else:
            waiting.sort(key=lambda turn: turn.place != asked.place)
    return first


async def give_back(connection: Connection) -> None:
    """Let relays go, and no longer: ICE itself asks one that is dead for half a minute."""
    relays = [p.transport for p in connection._protocols if isinstance(p.transport, TurnTransport)]
    for relay in relays:
        relay.close()
    asking = [relay.__dict__["_TurnTransport__close_task"] for relay in relays]
    if asking:
        _, in_vain = await asyncio.wait(asking, timeout=GIVE_BACK_LIMIT_S)
        for asked in in_vain:
            _log.info("relay.not_given_back")
            asked.cancel()  # which closes the socket all the same
        if in_vain:
            await asyncio.wait(in_vain)


async def _ask(
    connection: Connection,
    turn: ServerAddress,
    servers: LiveServers,
    limit_s: float,
    *,
    hides_address: bool,
) -> RelayUnavailable | None:
    asking = asyncio.ensure_future(
        relayed_candidate(
            component=_COMPONENT,
            hide_related_address=hides_address,
            protocol_factory=lambda: StunProtocol(connection),
            turn_server=(turn.host, turn.port),
            turn_username=turn.username,
            turn_password=turn.credential,
            # Passed on to asyncio as it is, where a context will do.
            turn_ssl=(servers.tls or True) if turn.transport == "tls" else False,  # type: ignore[arg-type]
            turn_transport="udp" if turn.transport == "udp" else "tcp",
        )
    )
    try:
        await asyncio.wait({asking}, timeout=limit_s)
    except asyncio.CancelledError:
        # The server may have given an address by now: it is taken, to be given back with the rest.
        try:
            await uninterrupted(_settled(asking, GIVE_BACK_LIMIT_S))
        finally:
            if not asking.cancelled() and asking.exception() is None:
                connection._protocols.append(asking.result()[1])
        raise
    if not asking.done():
        await uninterrupted(_settled(asking, 0))
    try:
        candidate, protocol = asking.result()
    except asyncio.CancelledError:
        return RelayUnreachable(f"The TURN server {turn.url} gave no address in time.")
    except TransactionFailed as exc:
        return _refusal(turn, *exc.response.attributes.get("ERROR-CODE", _NO_CODE))
    except TransactionTimeout:
        return RelayUnreachable(f"The TURN server {turn.url} stopped answering.")
    except OSError as exc:  # a TLS error is one too
        return RelayUnreachable(f"The TURN server {turn.url} can't be reached: {exc}.")
    connection._protocols.append(protocol)
    connection._local_candidates.append(candidate)
    return None


async def _settled(asking: asyncio.Future[tuple[Candidate, StunProtocol]], limit_s: float) -> None:
    """Return when `asking` is done: canceled, if it takes longer."""
    if not asking.done() and limit_s:
        await asyncio.wait({asking}, timeout=limit_s)
    asking.cancel()
    await asyncio.wait({asking})


def _none_answers(servers: LiveServers) -> RelayUnreachable:
    reasons = "; ".join(f"{answer.url}: {answer.reason}" for answer in servers.turn_refusals)
    return RelayUnreachable(f"No TURN server answers: {reasons}.")


def _refusal(turn: ServerAddress, number: int, reason: str) -> RelayUnavailable:
    if number not in (_UNAUTHORIZED, _WRONG_CREDENTIALS):
        return RelayUnavailable(
            f"The TURN server {turn.url} gave no address: {number} {reason}.", error=number
        )
    over_s = _over_since_s(turn.username or "")
    if over_s is not None:
        return RelayExpired(
            f"The credentials for the TURN server {turn.url} expired {over_s} s ago.",
            over_s=over_s,
        )
    return RelayRefused(f"The TURN server {turn.url} refuses the credentials.", error=number)


def _over_since_s(username: str) -> int | None:
    """Since when credentials made as `expiry:…` are over; None where they are not."""
    expiry, colon, _ = username.partition(":")
    if not (colon and expiry.isascii() and expiry.isdigit()):
        return None
    over_s = int(time.time()) - int(expiry)
    return over_s if over_s > 0 else None
