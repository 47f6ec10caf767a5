"""The keys that sign grants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aegis_protocol.model import Id, UnixSeconds, Wire


class IssuerKey(Wire):
    """A key that signs grants; `sig` is the previous key's signature over `issuer_statement`."""

    kid: Id
    x: str = Field(max_length=64)
    prev_kid: Id | None = None
    sig: str | None = Field(default=None, max_length=128)


class Jwk(Wire):
    """RFC 8037 section 2."""

    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA"] = "EdDSA"
    kid: Id
    x: str


class Jwks(Wire):
    keys: tuple[Jwk, ...]


class IssuerKeyRow(Wire):
    """
    A key of the issuer. state: signing; next, trusted and about to sign; valid, its grants still
    count; past, only part of the chain.
    """

    kid: Id
    x: str = Field(max_length=64)
    prev_kid: Id | None = None
    made_at: UnixSeconds
    signs_at: UnixSeconds
    state: Literal["signing", "next", "valid", "past"]


class IssuerKeyList(Wire):
    keys: tuple[IssuerKeyRow, ...]
