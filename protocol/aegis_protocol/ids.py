"""Identifiers that we make up: UUIDv7 (RFC 9562 section 5.7), so that they sort by time."""

from __future__ import annotations

import os
import time
import uuid
from base64 import b32encode
from hashlib import sha256


def new_id() -> str:
    """Return a UUIDv7 as text: 48 bits of unix milliseconds, then 74 random bits."""
    millis = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (millis & ((1 << 48) - 1)) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def new_secret(bits: int = 256) -> str:
    """Return `bits` of randomness as lower-case base32 without padding."""
    return b32encode(os.urandom(bits // 8)).decode().rstrip("=").lower()


def public_id(public_key: bytes) -> str:
    """Return an agent's id: the first 100 bits of its Ed25519 public key's SHA-256, base32."""
    return "ag-" + b32encode(sha256(public_key).digest()).decode().lower()[:20]
