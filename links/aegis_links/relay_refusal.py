"""
Why a TURN server that answers gave no relayed address: ICE keeps that to itself.

So the server is asked once more, alone, and its answer is read.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final

from aegis_protocol.failures.link import (
    RelayExpired,
    RelayRefused,
    RelayUnavailable,
    RelayUnreachable,
)
from aioice.stun import TransactionFailed, TransactionTimeout
from aioice.turn import create_turn_endpoint

from aegis_links.ice_servers import ServerAddress, ServerAnswer

ASK_DEADLINE_S: Final = 2.0
_UNAUTHORIZED: Final = 401  # RFC 8489 section 14.8
_WRONG_CREDENTIALS: Final = 441  # RFC 8656 section 19


def none_answers(refusals: tuple[ServerAnswer, ...]) -> RelayUnreachable:
    """The error where no TURN server of several was heard."""
    reasons = "; ".join(f"{answer.url}: {answer.reason}" for answer in refusals)
    return RelayUnreachable(f"No TURN server answers: {reasons}.")


async def why_refused(turn: ServerAddress, tls: ssl.SSLContext | None) -> RelayUnavailable:
    """Ask `turn` for an address with its credentials, and return what is wrong. Never raises."""
    closed = _Closed()
    try:
        async with asyncio.timeout(ASK_DEADLINE_S):
            relayed, _ = await create_turn_endpoint(
                lambda: closed,
                (turn.host, turn.port),
                turn.username,
                turn.credential,
                ssl=tls if turn.transport == "tls" else None,
                transport="udp" if turn.transport == "udp" else "tcp",
            )
            relayed.close()
            await closed.wait()
    except TransactionFailed as exc:
        return _refused(turn, *exc.response.attributes["ERROR-CODE"])
    except (TransactionTimeout, TimeoutError):
        return RelayUnreachable(f"The TURN server {turn.url} stopped answering.")
    except OSError as exc:  # a TLS error is one too
        return RelayUnreachable(f"The TURN server {turn.url} can't be reached: {exc}.")
    return RelayUnavailable(f"The TURN server {turn.url} gave no address in time.")


def _refused(turn: ServerAddress, number: int, reason: str) -> RelayUnavailable:
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


class _Closed(asyncio.DatagramProtocol):
    """Waits until an address that was given after all was given back."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._event.set()
