"""
The agent's own Ed25519 key, and what it learned when it enrolled.

`agent.key` (PEM, 0600) is made on first use and never leaves the machine; the agent's id is the
key's hash. `enrollment.json` holds control's URL and the issuer keys that the agent trusts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from aegis_protocol.errors import AegisError
from aegis_protocol.http_api import IssuerKey
from aegis_protocol.ids import public_id
from aegis_protocol.model import Wire
from aegis_protocol.signing import b64, issuer_statement, public_bytes, unb64, verified
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
        """Load the key of `state_dir`, or make it. `KeyUnreadable` when it is damaged."""
        path = state_dir / "agent.key"
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
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
        try:
            return cls.model_validate_json((state_dir / "enrollment.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, state_dir: Path) -> None:
        write_atomic(
            state_dir / "enrollment.json", self.model_dump_json(indent=2).encode(), mode=0o600
        )

    def keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The trusted issuer keys by kid."""
        return {
            key.kid: Ed25519PublicKey.from_public_bytes(unb64(key.x)) for key in self.issuer_keys
        }

    def with_keys(self, offered: tuple[IssuerKey, ...]) -> Enrollment:
        """
        Return this enrolment with those of `offered` that are introduced by a trusted key.

        A key that nobody trusted has signed is left out: it takes a new enrolment.
        """
        trusted = {key.kid: key for key in self.issuer_keys}
        for key in offered:
            if key.kid in trusted or key.prev_kid not in trusted or key.sig is None:
                continue
            previous = trusted[key.prev_kid]
            message = issuer_statement(key.kid, unb64(key.x))
            if verified(unb64(previous.x), unb64(key.sig), message):
                trusted[key.kid] = key
        return self.model_copy(update={"issuer_keys": tuple(trusted.values())})


def state_lock(state_dir: Path) -> int:
    """
    Take the state directory for this process; the descriptor holds it until it is closed.

    Raises `StateDirBusy` when another agent has it.
    """
    fd = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        raise StateDirBusy(f"another aegis-agent runs with {state_dir}") from exc
    return fd


class StateDirBusy(AegisError):
    code = "agent.state_dir_busy"
    remedy = "Run one agent per state directory: stop the other, or set AEGIS_STATE_DIR."
