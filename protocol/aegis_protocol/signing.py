"""
Signed statements: what is signed, to the byte, and the Ed25519 keys that sign.

A statement is a list of fields; each is UTF-8 text or raw bytes with its length as a big-endian
u32 before it. The first field names the statement's kind, so that a signature for one purpose
never serves another.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def statement(*fields: str | bytes) -> bytes:
    """Return the bytes to sign for `fields`."""
    raw = [field.encode() if isinstance(field, str) else field for field in fields]
    return b"".join(struct.pack(">I", len(field)) + field for field in raw)


def dtls_statement(
    agent_id: str, job_id: str, jti: str, client_fingerprint: bytes, agent_fingerprint: bytes
) -> bytes:
    """What an agent signs in its answer; both fingerprints are 32 raw bytes."""
    return statement("aegis-dtls-v1", agent_id, job_id, jti, client_fingerprint, agent_fingerprint)


def link_statement(nonce: str, base_url: str) -> bytes:
    """What an agent signs in `hello` (control's nonce, and the URL it believes to talk to)."""
    return statement("aegis-link-v1", nonce, base_url)


def enroll_statement(nonce: str, base_url: str) -> bytes:
    """What an agent signs when it enrols, as proof that it holds the key."""
    return statement("aegis-enroll-v1", nonce, base_url)


def manifest_statement(manifest: bytes) -> bytes:
    """What `manifest.sig` signs: the exact bytes of manifest.json."""
    return statement("aegis-manifest-v1", manifest)


def facts_statement(job_id: str, facts: str) -> bytes:
    """What an agent signs of a claim about a job."""
    return statement("aegis-facts-v1", job_id, facts)


def issuer_statement(kid: str, x: bytes) -> bytes:
    """What the previous issuer key signs to introduce the next one."""
    return statement("aegis-issuer-v1", kid, x)


def audit_statement(kind: str, seq: int, digest: bytes, at: int) -> bytes:
    """What control signs of its audit: `head` or `checkpoint`, and the hash of record `seq`."""
    return statement("aegis-audit-v1", kind, str(seq), digest, str(at))


def b64(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The bytes of unpadded base64url; ValueError on anything else."""
    if not all(c.isascii() and (c.isalnum() or c in "-_") for c in text):
        raise ValueError("not base64url")
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The 32 raw bytes of a public key (RFC 8032)."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def verified(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature` (64 bytes) is `public_key`'s (32 bytes) over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
