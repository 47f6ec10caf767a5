"""
Which STUN and TURN servers a link uses: of those that answer the first of each kind, in control's
order. Where that TURN server gives no address, the next that answered are asked (`relay`).

A dead one would cost ICE five seconds. So each is knocked at beforehand
(`ice_knock`), all at once; whoever keeps an `IceGuide` has the answers before they are needed.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import structlog
from aegis_protocol.http_api.grants import IceServer

from aegis_links.ice_knock import Scheme, knocked

_URL: Final = re.compile(
    r"(?P<scheme>stun|turn|turns):(?P<host>\[[0-9a-fA-F:.]+\]|[^?:\[\]]+)(?::(?P<port>\d{1,5}))?"
    r"(?:\?transport=(?P<transport>udp|tcp))?"
)
_LAST_PORT: Final = 0xFFFF
_LEAST_GRACE_S: Final = 0.05
_log = structlog.get_logger("aegis_links.ice_servers")

Transport: TypeAlias = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True)
class ServerAddress:
    """One URL of an ICE server, taken apart."""

    url: str
    scheme: Scheme
    host: str
    port: int
    transport: Transport
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    @property
    def place(self) -> tuple[Scheme, str, int, Transport]:
        """What an answer to a knock is about: the same for all credentials."""
        return self.scheme, self.host, self.port, self.transport


@dataclass(frozen=True)
class ServerAnswer:
    """reason: why it is of no use; None where it answered."""

    url: str
    reason: str | None


@dataclass(frozen=True)
class LiveServers:
    """
    The first STUN server that answered, and the TURN servers that did, first things first.

    turns_unheard  the TURN servers that might still have answered when the choice was made
    turn_refusals  the TURN servers before the first of them, or all, and why each is left out
    tls            how the certificate of a `turns:` server is judged
    """

    stun: ServerAddress | None = None
    turns: tuple[ServerAddress, ...] = ()
    turns_unheard: tuple[ServerAddress, ...] = ()
    turn_refusals: tuple[ServerAnswer, ...] = ()
    tls: ssl.SSLContext | None = None

    @property
    def turn(self) -> ServerAddress | None:
        return next(iter(self.turns), None)


Verdict: TypeAlias = "asyncio.Task[str | None]"
"""Why a server is of no use; None where it answered."""


async def ask_all(
    servers: Sequence[IceServer], *, tls: ssl.SSLContext | None = None
) -> tuple[ServerAnswer, ...]:
    """Knock at each server once and tell what came of it. Never raises."""
    addresses = list({address.place: address for address in addresses_of(servers)}.values())
    refusals = await asyncio.gather(*(refusal(address, tls) for address in addresses))
    return tuple(
        ServerAnswer(address.url, reason)
        for address, reason in zip(addresses, refusals, strict=True)
    )


async def find_live(
    servers: Sequence[IceServer], *, tls: ssl.SSLContext | None = None
) -> LiveServers:
    """Return the servers to use; what is left out is logged with the reason. Never raises."""
    addresses = addresses_of(servers)
    asked = [asyncio.create_task(refusal(address, tls)) for address in addresses]
    try:
        return await first_of_each(addresses, asked, tls)
    finally:
        for verdict in asked:
            verdict.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def addresses_of(servers: Sequence[IceServer]) -> list[ServerAddress]:
    """Every URL that can be used, in order; the others are logged."""
    found = []
    for server in servers:
        for url in server.urls:
            match = _URL.fullmatch(url)
            if match is None or not 0 < _port(match) <= _LAST_PORT:
                _log.warning("ice_server.left_out", url=url, reason="the URL can't be used here")
                continue
            secure = match["scheme"] == "turns"
            over_tcp: Transport = "tcp" if match["transport"] == "tcp" else "udp"
            found.append(
                ServerAddress(
                    url,
                    "stun" if match["scheme"] == "stun" else "turn",
                    match["host"].strip("[]"),
                    _port(match),
                    "tls" if secure else over_tcp,
                    server.username,
                    server.credential,
                )
            )
    return found


def _port(match: re.Match[str]) -> int:
    return int(match["port"] or (5349 if match["scheme"] == "turns" else 3478))


async def first_of_each(
    addresses: Sequence[ServerAddress],
    verdicts: Sequence[Verdict],
    tls: ssl.SSLContext | None,
) -> LiveServers:
    """
    Wait until the choice is clear. An earlier server that has not answered yet is waited for as
    long again as a later one took, and no longer: whoever has a second way is not held up.
    """
    (stuns, _), (turns, refusals) = await asyncio.gather(
        *(_first(scheme, addresses, verdicts) for scheme in ("stun", "turn"))
    )
    unheard = tuple(
        address
        for address, verdict in zip(addresses, verdicts, strict=True)
        if address.scheme == "turn" and address not in turns and not verdict.done()
    )
    return LiveServers(next(iter(stuns), None), turns, unheard, refusals, tls)


async def those_that_answer(
    addresses: Sequence[ServerAddress], tls: ssl.SSLContext | None
) -> list[ServerAddress]:
    """Knock at each, all at once; return those of use, in order."""
    refusals = await asyncio.gather(*(refusal(address, tls) for address in addresses))
    return [one for one, reason in zip(addresses, refusals, strict=True) if reason is None]


async def refusal(address: ServerAddress, tls: ssl.SSLContext | None) -> str | None:
    """Knock once: return why the server is of no use, or None."""
    if address.transport == "tls" and tls is None:
        tls = ssl.create_default_context()
    return await knocked(address.scheme, address.host, address.port, address.transport, tls)


async def _first(
    scheme: str, addresses: Sequence[ServerAddress], verdicts: Sequence[Verdict]
) -> tuple[tuple[ServerAddress, ...], tuple[ServerAnswer, ...]]:
    asked = [
        (address, verdict)
        for address, verdict in zip(addresses, verdicts, strict=True)
        if address.scheme == scheme
    ]
    clock = asyncio.get_running_loop().time
    began, patience_until = clock(), float("inf")
    while waiting := [verdict for _, verdict in asked if not verdict.done()]:
        answered = [verdict.done() and verdict.result() is None for _, verdict in asked]
        if True in answered:
            if all(verdict.done() for _, verdict in asked[: answered.index(True)]):
                break
            patience_until = min(patience_until, clock() + max(_LEAST_GRACE_S, clock() - began))
        left_s = None if patience_until == float("inf") else patience_until - clock()
        if left_s is not None and left_s <= 0:
            break
        await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    refusals: list[ServerAnswer] = []
    for address, verdict in asked:
        reason = verdict.result() if verdict.done() else "slower than the next"
        if reason is None:
            return _answered(asked), tuple(refusals)
        refused = ServerAnswer(address.url, reason)
        if refused not in refusals:  # there may be several credentials for one server
            _log.warning("ice_server.left_out", url=address.url, reason=reason)
            refusals.append(refused)
    return (), tuple(refusals)


def _answered(asked: Sequence[tuple[ServerAddress, Verdict]]) -> tuple[ServerAddress, ...]:
    return tuple(
        address for address, verdict in asked if verdict.done() and verdict.result() is None
    )
