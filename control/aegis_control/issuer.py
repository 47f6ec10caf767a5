"""The issuer: control's Ed25519 key, which signs grants, and its public face."""

from __future__ import annotations

import time
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from aegis_protocol import grant
from aegis_protocol.failures.grant import GrantInvalid
from aegis_protocol.http_api import IssuerKey, Jwk, Jwks
from aegis_protocol.signing import b64, public_bytes
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


@dataclass(frozen=True)
class Signature:
    """x: the public key, 32 bytes."""

    kid: str
    x: bytes
    sig: bytes


class Issuer:
    """One signing key and its id (the first 80 bits of the public key's SHA-256, base32)."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._x = public_bytes(key)
        self.kid = b32encode(sha256(self._x).digest()).decode().lower()[:16]

    @classmethod
    def open(cls, path: Path) -> Issuer:
        """Load the key at `path`, or make it there. StateUnusable when it is damaged."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            return cls(key)
        except OSError as exc:
            raise StateUnusable(f"{path}: {exc.strerror}", path=str(path)) from exc
        try:
            loaded = load_pem_private_key(raw, password=None)
        except ValueError as exc:
            raise _damaged(path) from exc
        if not isinstance(loaded, Ed25519PrivateKey):
            raise _damaged(path)
        return cls(loaded)

    @classmethod
    def from_private(cls, raw: bytes) -> Issuer:
        """From the 32 bytes of a private key."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def private(self) -> bytes:
        """The private key's 32 bytes."""
        return self._key.private_bytes_raw()

    def sign(self, claims: grant.GrantClaims) -> str:
        return grant.sign(claims, self._key, self.kid)

    def sign_statement(self, message: bytes) -> Signature:
        """Sign what is no grant (`aegis_protocol.signing`) with the key that signs now."""
        return Signature(self.kid, self._x, self._key.sign(message))

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
        """What an agent learns when it enrols and in every welcome."""
        return (IssuerKey(kid=self.kid, x=b64(self._x)),)

    def jwks(self) -> Jwks:
        return Jwks(keys=(Jwk(kid=self.kid, x=b64(self._x)),))

    def _public(self) -> Mapping[str, Ed25519PublicKey]:
        return {self.kid: self._key.public_key()}


def _damaged(path: Path) -> StateUnusable:
    return StateUnusable(
        f"{path} holds no Ed25519 key",
        remedy="Restore it from a backup, or delete it and enrol every agent again.",
        path=str(path),
    )
