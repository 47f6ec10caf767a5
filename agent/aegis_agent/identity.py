"""
The agent's own Ed25519 key, and what it learned when it enrolled.

`agent.key` (PEM, 0600) is made on first use and never leaves the machine; the agent's id is the
key's hash. `enrollment.json` holds control's URL and the issuer keys that the agent trusts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.ids import public_id
from aegis_protocol.issuer_keys import followed, sound
from aegis_protocol.model import Wire
from aegis_protocol.signing import b64, public_bytes, unb64
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
from pydantic import ValidationError

from aegis_agent.files import write_atomic
from aegis_agent.state_dir import prepare, usable

log = structlog.get_logger()

_MOST_ISSUER_KEYS: Final = 2
"""The one that signs and the one before: what was signed with older ones counts no more."""


class KeyUnreadable(AegisError):
    code = "agent.key_unreadable"
    remedy = "Restore agent.key from a backup, or delete it and enrol the agent again."


class NotEnrolled(AegisError):
    code = "agent.not_enrolled"
    remedy = (
        "Make a token on control (`aegis-control enroll-token create`), then run "
        "`aegis-agent enroll`; or set AGENT_AUTH_SECRET."
    )


class Identity:
    """The agent's key and id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = public_bytes(key)
        self.agent_id = public_id(self.public_key)

    @classmethod
    def open(cls, state_dir: Path) -> Identity:
        """Load the key of `state_dir`, or make it. KeyUnreadable when damaged, StateUnusable."""
        path = state_dir / "agent.key"
        prepare(state_dir)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with usable(state_dir):
                write_atomic(path, pem, mode=0o600)
            return cls(key)
        except OSError as exc:
            raise KeyUnreadable(f"{path}: {exc.strerror}") from exc
        try:
            loaded = load_pem_private_key(raw, password=None)
        except ValueError as exc:
            raise KeyUnreadable(f"{path} holds no key") from exc
        if not isinstance(loaded, Ed25519PrivateKey):
            raise KeyUnreadable(f"{path} holds a key of another kind")
        with usable(path):
            path.chmod(0o600)
        return cls(loaded)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @property
    def public_text(self) -> str:
        return b64(self.public_key)


class Enrollment(Wire):
    """Where the agent belongs, and whose grants it takes."""

    base_url: str
    agent_id: str
    issuer_keys: tuple[IssuerKey, ...]

    @classmethod
    def open(cls, state_dir: Path) -> Enrollment | None:
        """The enrolment of `state_dir`, or None when there is none (or a damaged one)."""
        path = state_dir / "enrollment.json"
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as exc:
            log.warning("enrollment.unreadable", path=str(path), kind=type(exc).__name__)
            return None
        return found.model_copy(update={"issuer_keys": sound(found.issuer_keys)})

    def save(self, state_dir: Path) -> None:
        """Keep it on disk. Raises StateUnusable."""
        with usable(state_dir):
            write_atomic(
                state_dir / "enrollment.json", self.model_dump_json(indent=2).encode(), mode=0o600
            )

    def keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The trusted issuer keys by kid."""
        return {
            key.kid: Ed25519PublicKey.from_public_bytes(unb64(key.x)) for key in self.issuer_keys
        }

    def with_keys(self, offered: Sequence[IssuerKey]) -> Enrollment:
        """
        Return this enrolment with those of `offered` that are introduced by a trusted key, in
        whatever order they come; the newest two are kept.

        A key that nobody trusted has signed is left out: it takes a new enrolment.
        """
        newest = followed(self.issuer_keys, offered)[-_MOST_ISSUER_KEYS:]
        return self.model_copy(update={"issuer_keys": newest})
