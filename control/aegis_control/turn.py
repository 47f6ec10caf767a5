"""
ICE servers for one side of one job, with TURN credentials that end with it.

The credentials follow coturn's `use-auth-secret`: the user name is `expiry:job_id:side`, the
password its HMAC-SHA1 in base64. They are valid for the job's time and 90 s.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from aegis_protocol.http_api import IceServer

SPARE_S: Final = 90

Side: TypeAlias = Literal["client", "agent"]


def ice_servers(
    *,
    stun_urls: Sequence[str],
    turn_urls: Sequence[str],
    turn_secret: str | None,
    job_id: str,
    side: Side,
    ends_at_s: float,
) -> tuple[IceServer, ...]:
    """ends_at_s: when the job's time is over, in unix seconds."""
    servers: list[IceServer] = []
    if stun_urls:
        servers.append(IceServer(urls=tuple(stun_urls)))
    if turn_urls and turn_secret is not None:
        username = f"{int(ends_at_s) + SPARE_S}:{job_id}:{side}"
        digest = hmac.new(turn_secret.encode(), username.encode(), hashlib.sha1).digest()
        servers.append(
            IceServer(
                urls=tuple(turn_urls), username=username, credential=b64encode(digest).decode()
            )
        )
    return tuple(servers)
