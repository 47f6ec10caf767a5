"""
Secrets that lie in the database: sealed with a key from the environment, so that the database
alone gives none away.

The key is made of AEGIS_SEAL_KEY (HKDF-SHA256); what is sealed is ChaCha20-Poly1305 over the
secret, bound to its name. AEGIS_SEAL_KEY_PREVIOUS opens what was sealed before the key changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from aegis_protocol.errors import AegisError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIN_KEY_CHARACTERS: Final = 32

_NONCE_BYTES: Final = 12


class SealWrong(AegisError):
    code = "seal.wrong"
    remedy = "Set AEGIS_SEAL_KEY (or AEGIS_SEAL_KEY_PREVIOUS) to what it was when this was sealed."


class Seal:
    """keys: AEGIS_SEAL_KEY, then what may still open what was sealed before."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._ciphers = [ChaCha20Poly1305(_derived(key)) for key in keys]

    def close(self, name: str, secret: bytes) -> bytes:
        """Seal `secret` under the newest key."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, secret, name.encode())

    def open(self, name: str, sealed: bytes) -> tuple[bytes, bool]:
        """Return the secret, and whether the newest key opened it. Raises SealWrong."""
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        for index, cipher in enumerate(self._ciphers):
            try:
                return cipher.decrypt(nonce, rest, name.encode()), index == 0
            except (InvalidTag, ValueError):
                continue
        raise SealWrong(f"the seal key does not open the {name} in the database", name=name)


def _derived(key: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"aegis-seal-v1").derive(key.encode())
