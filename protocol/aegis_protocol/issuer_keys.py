"""
Who may follow whom among the keys that sign grants: a key introduces the next one by a signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.signing import issuer_statement, unb64, verified


def sound(keys: Sequence[IssuerKey]) -> tuple[IssuerKey, ...]:
    """Those of `keys` that are Ed25519 keys at all."""
    return tuple(key for key in keys if _bytes_of(key.x) is not None)


def followed(trusted: Iterable[IssuerKey], offered: Sequence[IssuerKey]) -> tuple[IssuerKey, ...]:
    """
    Return `trusted`, and after them those of `offered` that are introduced by one of these or by
    one another, in whatever order they come. A key that nobody trusted has signed is left out.
    """
    known = {key.kid: key for key in trusted}
    waiting = [key for key in sound(offered) if key.kid not in known]
    while introduced := [key for key in waiting if _introduced(key, known)]:
        known |= {key.kid: key for key in introduced}
        waiting = [key for key in waiting if key.kid not in known]
    return tuple(known.values())


def _introduced(key: IssuerKey, trusted: Mapping[str, IssuerKey]) -> bool:
    signature = _bytes_of(key.sig or "", size=64)
    previous = trusted.get(key.prev_kid or "")
    if previous is None or signature is None:
        return False
    return verified(unb64(previous.x), signature, issuer_statement(key.kid, unb64(key.x)))


def _bytes_of(text: str, *, size: int = 32) -> bytes | None:
    try:
        raw = unb64(text)
    except ValueError:
        return None
    return raw if len(raw) == size else None
