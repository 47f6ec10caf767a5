"""
The agent's own check of every grant: nothing that control says is taken on its word.

In order: the token (signature, audience, time), that it was not revoked, the offer (one section,
one fingerprint, the grant's), the job's attempt, and that the grant was not used before. Fencing
numbers are checked where the boards are. What is refused here leaves nothing behind but a log line.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from aegis_protocol.control_link import JobOffer
from aegis_protocol.failures.grant import GrantInvalid, GrantRevoked, GrantStale, GrantUsed
from aegis_protocol.fingerprint import Fingerprint, check_sdp
from aegis_protocol.grant import LEEWAY_S, MAX_GRANT_LIFE_S, GrantClaims, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aegis_agent.ledger import Ledger


@dataclass(frozen=True)
class Admitted:
    """A grant that holds. answer: the earlier answer, when this is a repeat of the same offer."""

    claims: GrantClaims
    peer_fingerprint: Fingerprint
    answer: str | None = None


class GrantGate:
    """Admits offers whose grant holds. Its methods wait for the disk: call them in a thread."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        agent_id: str,
        issuer_keys: Callable[[], Mapping[str, Ed25519PublicKey]],
        skew_s: Callable[[], float | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._agent_id = agent_id
        self._issuer_keys = issuer_keys
        self._skew_s = skew_s
        self._clock = clock

    def admit(self, offer: JobOffer) -> Admitted:
        """
        Return what `offer`'s grant permits, and mark it as used on disk.

        Raises a `GrantError` or an SDP error; `GrantUsed` when it came before with another offer,
        or with the same one and no answer yet; DiskFull when that can't be kept.
        """
        now_s = self._clock()
        claims = verify(
            offer.grant,
            self._issuer_keys(),
            audience=self._agent_id,
            now_s=now_s,
            skew_s=self._skew_s(),
        )
        if claims.job_id != offer.job_id or claims.jti != offer.jti:
            raise GrantInvalid("the grant is for another job than the offer")
        if self._ledger.is_revoked(
            ("grant", claims.jti), ("job", claims.job_id), ("identity", claims.sub)
        ):
            raise GrantRevoked("the permission was taken back", jti=claims.jti)
        granted = Fingerprint.parse(claims.webrtc.peer_fingerprint)
        granted.expect(check_sdp(offer.sdp))
        newest = self._ledger.newest_attempt(claims.job_id, claims.attempt, now_s=now_s)
        if claims.attempt < newest:
            raise GrantStale("the job was placed again since", attempt=claims.attempt)
        digest = sha256(offer.sdp.encode()).hexdigest()
        forget_at = now_s + 2 * LEEWAY_S + MAX_GRANT_LIFE_S + 60
        used = self._ledger.claim(claims.jti, digest, forget_at=forget_at)
        if used is None:
            return Admitted(claims, granted)
        if used.answer is None or not hmac.compare_digest(used.offer_sha256, digest):
            raise GrantUsed("this grant was used before", jti=claims.jti)
        return Admitted(claims, granted, used.answer)

    def answered(self, claims: GrantClaims, answer: str) -> None:
        """Keep `answer` for a repeat of the same offer."""
        self._ledger.answered(claims.jti, answer)
