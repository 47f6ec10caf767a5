"""
Control's audit as operators get it: records in a chain of hashes, and signatures over it.

A record's hash is SHA-256 over `statement("aegis-audit-record-v1", hash before, content)`; content
is the record without its hash, as JSON with sorted keys and no spaces. The first record's hash
before is 32 zero bytes. A head is a signature over the newest hash; kept elsewhere (control writes
it to its log each minute), it shows a tail that was cut off. A checkpoint is the same over the
last record that was pruned, where the chain goes on.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.model import Sha256Hex, UnixSeconds, Wire
from aegis_protocol.signing import audit_statement, statement, unb64, verified

GENESIS: Final = "0" * 64
"""The hash before the first record."""


class AuditRecord(Wire):
    """seq: its place, from 1. job, agent, board, artifact: what it was done to, where it was."""

    seq: int = Field(ge=1)
    id: int
    at: UnixSeconds
    what: str
    who: str
    source: str | None = None
    decision: str
    rule: str | None = None
    job_id: str | None = None
    agent_id: str | None = None
    board_id: str | None = None
    artifact_sha256: str | None = None
    outcome: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    hash: Sha256Hex

    def content(self) -> bytes:
        """What is hashed of it."""
        fields = self.model_dump(exclude={"hash"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def expected_hash(self, before: str) -> str:
        """The hash that it must have after a record with the hash `before`."""
        return chained(before, self.content())


class AuditHead(Wire):
    """Control's signature over the chain up to record `seq`. at: whole unix seconds."""

    kind: Literal["head", "checkpoint"] = "head"
    seq: int = Field(ge=0)
    hash: Sha256Hex
    at: int
    kid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
    sig: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{86}$")]

    def signed(self, x: str) -> bool:
        """Tell whether the key `x` (base64url) made this signature."""
        message = audit_statement(self.kind, self.seq, bytes.fromhex(self.hash), self.at)
        try:
            return verified(unb64(x), unb64(self.sig), message)
        except ValueError:
            return False

    def text(self) -> str:
        """One word, as control writes it to its log."""
        return ".".join((str(self.seq), self.hash, str(self.at), self.kid, self.sig))

    @classmethod
    def parse(cls, text: str) -> AuditHead:
        """Read `text()` of a head back; ValueError when it is none."""
        parts = text.strip().split(".")
        if len(parts) != 5:
            raise ValueError("a head is SEQ.HASH.TIME.KID.SIGNATURE")
        return cls.model_validate(
            dict(zip(("seq", "hash", "at", "kid", "sig"), parts, strict=True))
        )


class AuditList(Wire):
    """Records in order. more: there are others after them."""

    records: tuple[AuditRecord, ...]
    more: bool = False


class AuditSeal(Wire):
    """What holds the chain: where it begins, its newest heads, and keys that may have signed."""

    checkpoint: AuditHead | None = None
    heads: tuple[AuditHead, ...] = ()
    keys: tuple[IssuerKey, ...] = ()
    unsealed: int = 0
    """Records that have no number yet."""
    unsealed_since: UnixSeconds | None = None


class AuditPruneRequest(Wire):
    """Drop the records from before this time."""

    before: UnixSeconds


class AuditPruned(Wire):
    removed: int
    checkpoint: AuditHead | None = None


def chained(before: str, content: bytes) -> str:
    """The hash of a record with `content` after one with the hash `before`."""
    return sha256(statement("aegis-audit-record-v1", bytes.fromhex(before), content)).hexdigest()
