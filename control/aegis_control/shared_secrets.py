"""
The secrets that all replicas must have alike: the pepper of the keys, and the issuer's key.

Each replica has files of its own in its state directory. The first that serves a shared database
leaves there what it has, sealed with AEGIS_SEAL_KEY; the others take it from there. Without
AEGIS_SEAL_KEY only a mark is left, by which a replica with other secrets is refused: it would know
none of the keys, and its grants would be trusted by no agent.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final

from aegis_protocol.errors import AegisError

from aegis_control.log import get_logger
from aegis_control.sealing import Seal
from aegis_control.store import secrets
from aegis_control.store.database import Database

log = get_logger("replica")

_MARK: Final = b"aegis-secret-mark-v1"


class SecretsDiffer(AegisError):
    code = "replica.secrets_differ"
    remedy = (
        "Set AEGIS_SEAL_KEY to one value on every replica, the one that ran first included, and "
        "restart that one first; or copy its state directory's files."
    )


async def agree(database: Database, seal: Seal | None, name: str, own: bytes) -> bytes:
    """
    Return the secret of that name that all replicas have: ours when we are the first, else theirs.

    Raises SecretsDiffer when theirs is another and not to be had, SealWrong.
    """
    if not database.shared:
        return own
    mark = hmac.new(own, _MARK, sha256).digest()
    async with database.alone("secrets"), database.write() as conn:
        known = await secrets.get(conn, name)
        if known is None:
            sealed = None if seal is None else seal.close(name, own)
            await secrets.add(conn, name, mark, sealed)
            return own
        same = hmac.compare_digest(known.mark, mark)
        if seal is None or known.sealed is None:
            if not same:
                raise SecretsDiffer(
                    f"the {name} of this replica is not the one that the database was begun with",
                    name=name,
                )
            if seal is not None:
                await secrets.seal(conn, name, seal.close(name, own))
            return own
        theirs, newest = seal.open(name, known.sealed)
        if not newest:
            await secrets.seal(conn, name, seal.close(name, theirs))
            log.info("secret.resealed", name=name)
        return theirs
