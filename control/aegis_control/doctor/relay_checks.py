"""STUN answers, and TURN gives a relay for credentials made as control makes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aegis_control.doctor.check import Check, error, ok
from aegis_control.doctor.stun_client import Server, StunRefused, ask_address, ask_relay
from aegis_control.doctor.subject import Subject
from aegis_control.trust import trust
from aegis_control.turn import ice_servers

_UNAUTHORIZED: Final = 401


async def relays(subject: Subject) -> AsyncIterator[Check]:
    """One check for each STUN and TURN URL; all are asked at once."""
    config = subject.config
    for check in await asyncio.gather(
        *(_stun(url) for url in config.stun_urls),
        *(_turn(subject, url) for url in config.turn_urls),
    ):
        yield check


async def _stun(url: str) -> Check:
    name = f"stun {url}"
    try:
        address = await ask_address(Server.parse(url), trust())
    except (OSError, StunRefused, ValueError) as exc:
        return error(name, _why(exc), "Correct AEGIS_STUN_URLS, or open the server's port.")
    return ok(name, f"sees this machine as {address}")


async def _turn(subject: Subject, url: str) -> Check:
    name = f"turn {url}"
    (server,) = ice_servers(
        stun_urls=(),
        turn_urls=(url,),
        turn_secrets=subject.config.turn_secrets[:1],
        job_id="doctor",
        side="client",
        ends_at_s=subject.machine.now_s(),
    )
    try:
        relay = await ask_relay(
            Server.parse(url), server.username or "", server.credential or "", trust()
        )
    except StunRefused as exc:
        if exc.code == _UNAUTHORIZED:
            return error(
                name,
                f"it refuses the credentials: {exc}",
                "AEGIS_TURN_SECRET must be coturn's static-auth-secret, with use-auth-secret, and"
                " both clocks right.",
            )
        return error(name, f"it gives no relay: {exc}", "Look at the TURN server's log.")
    except (OSError, ValueError) as exc:
        return error(
            name, _why(exc), "Start the TURN server, open its port, or correct AEGIS_TURN_URLS."
        )
    return ok(name, f"gave a relay at {relay}")


def _why(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError):
        return f"can't be reached: {exc.strerror or exc}"
    return str(exc)
