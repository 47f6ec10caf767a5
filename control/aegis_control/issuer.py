"""
The issuer: control's Ed25519 key, which signs grants, and its public face.

It changes without a restart: a new key is introduced by the signature of the one before. Grants of
the last two are valid; older ones stay in the chain by which agents that were away find the way
from the key that they trust to the one that signs now.
"""

from __future__ import annotations

import time
from base64 import b32encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import jwt
from aegis_protocol import grant
from aegis_protocol.failures.grant import GrantInvalid
from aegis_protocol.http_api.issuer import IssuerKey, Jwk, Jwks
from aegis_protocol.signing import b64, issuer_statement, public_bytes, unb64
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from aegis_control.secret_files import write_secret
from aegis_control.state_dir import StateUnusable

VALID_KEYS: Final = 2
CHAIN_KEYS: Final = 16
"""As many as a frame names."""


@dataclass(frozen=True)
class Signature:
    """x: the public key, 32 bytes."""

    kid: str
    x: bytes
    sig: bytes


class Issuer:
    """The key that signs, and the chain of keys (oldest first) that leads to it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._chain: tuple[IssuerKey, ...] = (IssuerKey(kid=kid_of(key), x=_x(key)),)

    @classmethod
    def open(cls, path: Path) -> Issuer:
        """Load the key at `path`, or make it there. StateUnusable when it is damaged."""
        try:
            return cls(read_key(path))
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            write_key(path, key)
            return cls(key)

    @classmethod
    def from_private(cls, raw: bytes) -> Issuer:
        """From the 32 bytes of a private key."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @property
    def kid(self) -> str:
        """Of the key that signs now."""
        return kid_of(self._key)

    @property
    def key(self) -> Ed25519PrivateKey:
        return self._key

    def private(self) -> bytes:
        """The private key's 32 bytes."""
        return self._key.private_bytes_raw()

    def follow(self, chain: Sequence[IssuerKey], key: Ed25519PrivateKey) -> bool:
        """Sign with `key` from now on, which is in `chain`; tells whether anything changed."""
        before = (self.kid, self._chain)
        self._key, self._chain = key, tuple(chain)
        return before != (self.kid, self._chain)

    def introduce(self, key: Ed25519PrivateKey) -> IssuerKey:
        """What makes whoever trusts the key that signs now trust `key` too."""
        x = public_bytes(key)
        signature = self._key.sign(issuer_statement(kid_of(key), x))
        return IssuerKey(kid=kid_of(key), x=b64(x), prev_kid=self.kid, sig=b64(signature))

    def sign(self, claims: grant.GrantClaims) -> str:
        return grant.sign(claims, self._key, self.kid)

    def sign_statement(self, message: bytes) -> Signature:
        """Sign what is no grant (`aegis_protocol.signing`) with the key that signs now."""
        return Signature(self.kid, public_bytes(self._key), self._key.sign(message))

    def verify(self, token: str) -> grant.GrantClaims:
        """Return the claims of a grant of our own, whoever it is for; else as `grant.verify`."""
        try:
            unverified: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError as exc:
            raise GrantInvalid("the grant is not a JWT") from exc
        audience = unverified.get("aud")
        if not isinstance(audience, str):
            raise GrantInvalid("the grant names no agent")
        return grant.verify(token, self._public(), audience=audience, now_s=time.time())

    def keys(self) -> tuple[IssuerKey, ...]:
        """What an agent learns when it enrols and in every welcome: the chain, oldest first."""
        return self._chain[-CHAIN_KEYS:]

    def valid(self) -> tuple[IssuerKey, ...]:
        """The keys whose grants are valid now."""
        return self._chain[-VALID_KEYS:]

    def jwks(self) -> Jwks:
        return Jwks(keys=tuple(Jwk(kid=key.kid, x=key.x) for key in self.valid()))

    def _public(self) -> Mapping[str, Ed25519PublicKey]:
        return {key.kid: Ed25519PublicKey.from_public_bytes(unb64(key.x)) for key in self.valid()}


def kid_of(key: Ed25519PrivateKey) -> str:
    """A key's id: the first 80 bits of the public key's SHA-256, in base32."""
    return b32encode(sha256(public_bytes(key)).digest()).decode().lower()[:16]


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`. StateUnusable when it is damaged; FileNotFoundError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StateUnusable(f"{path}: {exc.strerror}", path=str(path)) from exc
    try:
        loaded = load_pem_private_key(raw, password=None)
    except ValueError as exc:
        raise _damaged(path) from exc
    if not isinstance(loaded, Ed25519PrivateKey):
        raise _damaged(path)
    return loaded


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Keep `key` in `path`, 0600."""
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _x(key: Ed25519PrivateKey) -> str:
    return b64(public_bytes(key))


def _damaged(path: Path) -> StateUnusable:
    return StateUnusable(
        f"{path} holds no Ed25519 key",
        remedy="Restore it from a backup, or delete it and enrol every agent again.",
        path=str(path),
    )
