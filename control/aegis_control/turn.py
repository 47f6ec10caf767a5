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

from aegis_protocol.http_api.grants import IceServer

SPARE_S: Final = 90

Side: TypeAlias = Literal["client", "agent"]


def ice_servers(
    *,
    stun_urls: Sequence[str],
    turn_urls: Sequence[str],
    turn_secrets: Sequence[str],
    job_id: str,
    side: Side,
    ends_at_s: float,
) -> tuple[IceServer, ...]:
    """
    turn_secrets  newest first: while it changes there are credentials by either
    ends_at_s     when the job's time is over, in unix seconds
    """
    servers: list[IceServer] = []
    if stun_urls:
        servers.append(IceServer(urls=tuple(stun_urls)))
    username = f"{int(ends_at_s) + SPARE_S}:{job_id}:{side}"
    for secret in turn_secrets if turn_urls else ():
        digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
        credential = b64encode(digest).decode()
        servers.append(IceServer(urls=tuple(turn_urls), username=username, credential=credential))
    return tuple(servers)
