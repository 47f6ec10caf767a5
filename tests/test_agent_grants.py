"""The agent's own check of grants: every point of it refuses, and what holds is admitted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aegis_agent.grants import GrantGate
from aegis_agent.ledger import Ledger
from aegis_protocol.actions import Action
from aegis_protocol.control_link import JobOffer
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import (
    GrantExpired,
    GrantForeignAgent,
    GrantInvalid,
    GrantNotYetValid,
    GrantRevoked,
    GrantStale,
    GrantUnknownIssuer,
    GrantUsed,
)
from aegis_protocol.failures.link import FingerprintAmbiguous, FingerprintMismatch
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits, sign
from aegis_protocol.ids import new_id
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.generate()
PEER = Fingerprint(bytes(range(32)))
OTHER = Fingerprint(bytes(range(1, 33)))


def sdp(*fingerprints: Fingerprint) -> str:
    lines = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0"]
    lines += ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0"]
    lines += [f"a=fingerprint:sha-256 {fingerprint.pairs}" for fingerprint in fingerprints]
    return "\r\n".join([*lines, ""])


def claims(**changes: Any) -> GrantClaims:
    now = time.time()
    fields: dict[str, Any] = {
        "iss": "https://control.example.org",
        "sub": "key-1",
        "aud": "ag-me",
        "jti": new_id(),
        "iat": now,
        "nbf": now,
        "exp": now + 30,
        "job_id": "job-1",
        "attempt": 1,
        "actions": (Action.BUILD_RUN,),
        "webrtc": WebRtcLimits(allowed_channels=("espctl",), peer_fingerprint=str(PEER)),
        "execution": Execution(target="esp32p4"),
    }
    return GrantClaims(**(fields | changes))


def offer(given: GrantClaims, *, key: Ed25519PrivateKey = KEY, **changes: Any) -> JobOffer:
    fields: dict[str, Any] = {
        "job_id": given.job_id,
        "jti": given.jti,
        "grant": sign(given, key, "kid-1"),
        "sdp": sdp(PEER),
    }
    return JobOffer(**(fields | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def gate(ledger: Ledger) -> GrantGate:
    return gate_over(ledger)


def gate_over(ledger: Ledger) -> GrantGate:
    return GrantGate(
        ledger,
        agent_id="ag-me",
        issuer_keys=lambda: {"kid-1": KEY.public_key()},
        skew_s=lambda: 0.25,
    )


def test_a_grant_that_holds_is_admitted(gate: GrantGate) -> None:
    given = claims()
    admitted = gate.admit(offer(given))
    assert admitted.claims == given
    assert admitted.peer_fingerprint == PEER
    assert admitted.answer is None


def test_a_grant_that_expired_is_refused_with_both_clocks(gate: GrantGate) -> None:
    past = time.time() - 100
    with pytest.raises(GrantExpired) as refused:
        gate.admit(offer(claims(iat=past, nbf=past, exp=past + 30)))
    assert refused.value.facts["skew_s"] == 0.25
    assert refused.value.facts["now"] > refused.value.facts["exp"]


def test_a_clock_that_is_half_a_minute_off_is_forgiven(gate: GrantGate) -> None:
    past = time.time() - 55
    gate.admit(offer(claims(iat=past, nbf=past, exp=past + 30)))
    future = time.time() + 25
    gate.admit(offer(claims(iat=future, nbf=future, exp=future + 30)))


def test_a_grant_from_the_future_is_refused(gate: GrantGate) -> None:
    future = time.time() + 100
    with pytest.raises(GrantNotYetValid):
        gate.admit(offer(claims(iat=future, nbf=future, exp=future + 30)))


def test_a_grant_that_lives_too_long_is_refused(gate: GrantGate) -> None:
    with pytest.raises(GrantInvalid):
        gate.admit(offer(claims(exp=time.time() + 3600)))


@pytest.mark.parametrize(("nbf", "iat"), [(-86_400.0, 0.0), (0.0, 86_400.0)])
def test_a_grants_life_counts_from_both_of_its_beginnings(
    gate: GrantGate, nbf: float, iat: float
) -> None:
    now = time.time()
    with pytest.raises((GrantInvalid, GrantNotYetValid)):
        gate.admit(offer(claims(nbf=now + nbf, iat=now + iat, exp=now + iat + 30)))


def test_a_forged_grant_is_refused(gate: GrantGate) -> None:
    with pytest.raises(GrantInvalid):
        gate.admit(offer(claims(), key=Ed25519PrivateKey.generate()))


def test_a_grant_of_an_unknown_issuer_is_refused(ledger: Ledger) -> None:
    gate = GrantGate(ledger, agent_id="ag-me", issuer_keys=dict, skew_s=lambda: None)
    with pytest.raises(GrantUnknownIssuer):
        gate.admit(offer(claims()))


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_another_algorithm_is_refused(gate: GrantGate, algorithm: str) -> None:
    given = claims()
    secret: Any = None if algorithm == "none" else "x" * 32
    forged = jwt.encode(
        given.model_dump(mode="json"), secret, algorithm=algorithm, headers={"kid": "kid-1"}
    )
    with pytest.raises(GrantInvalid):
        gate.admit(offer(given, grant=forged))


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "jti", "iat", "nbf", "exp", "job_id"])
def test_a_grant_without_a_claim_is_refused(gate: GrantGate, claim: str) -> None:
    given = claims()
    raw = given.model_dump(mode="json")
    del raw[claim]
    token = jwt.encode(raw, KEY, algorithm="EdDSA", headers={"kid": "kid-1"})
    with pytest.raises(GrantInvalid):
        gate.admit(offer(given, grant=token))


@pytest.mark.parametrize("grant", ["", "x", "a.b.c", "ä" * 20, "A" * 8192])
def test_what_is_no_token_is_refused(gate: GrantGate, grant: str) -> None:
    with pytest.raises(GrantInvalid):
        gate.admit(offer(claims(), grant=grant))


def test_a_grant_for_another_agent_is_refused(gate: GrantGate) -> None:
    with pytest.raises(GrantForeignAgent):
        gate.admit(offer(claims(aud="ag-other")))


def test_a_grant_for_another_job_is_refused(gate: GrantGate) -> None:
    with pytest.raises(GrantInvalid):
        gate.admit(offer(claims(), job_id="job-2"))


def test_an_offer_with_another_fingerprint_is_refused(gate: GrantGate) -> None:
    with pytest.raises(FingerprintMismatch):
        gate.admit(offer(claims(), sdp=sdp(OTHER)))


def test_an_offer_with_two_fingerprints_is_refused(gate: GrantGate) -> None:
    with pytest.raises(FingerprintAmbiguous):
        gate.admit(offer(claims(), sdp=sdp(PEER, OTHER)))


def test_a_grant_with_another_offer_is_used_up(gate: GrantGate) -> None:
    given = claims()
    gate.admit(offer(given))
    gate.answered(given, "the answer")
    with pytest.raises(GrantUsed):
        gate.admit(offer(given, sdp=sdp(PEER) + "a=x\r\n"))


def test_the_same_offer_again_gets_the_same_answer(gate: GrantGate) -> None:
    given = claims()
    gate.admit(offer(given))
    with pytest.raises(GrantUsed):
        gate.admit(offer(given))
    gate.answered(given, "the answer")
    assert gate.admit(offer(given)).answer == "the answer"


def test_a_used_grant_stays_used_across_a_restart(tmp_path: Path) -> None:
    given = claims()
    with Ledger(tmp_path / "l.sqlite") as before:
        gate_over(before).admit(offer(given))
    with Ledger(tmp_path / "l.sqlite") as after, pytest.raises(GrantUsed):
        gate_over(after).admit(offer(given))


def test_an_older_attempt_of_a_job_is_refused_across_a_restart(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as before:
        gate_over(before).admit(offer(claims(attempt=2)))
    with Ledger(tmp_path / "l.sqlite") as after, pytest.raises(GrantStale):
        gate_over(after).admit(offer(claims(attempt=1)))


def test_what_was_refused_can_still_be_used_rightly(gate: GrantGate) -> None:
    given = claims()
    with pytest.raises(AegisError):
        gate.admit(offer(given, sdp=sdp(OTHER)))
    assert gate.admit(offer(given)).claims == given


def test_the_ledger_forgets_what_is_past(ledger: Ledger) -> None:
    assert ledger.claim("jti", "digest", forget_at=10.0) is None
    ledger.forget(now_s=11.0)
    assert ledger.claim("jti", "digest", forget_at=20.0) is None


@pytest.mark.parametrize(
    ("kind", "what"), [("grant", "jti"), ("job", "job_id"), ("identity", "sub")]
)
def test_what_was_revoked_is_never_admitted_not_even_after_a_restart(
    tmp_path: Path, kind: Any, what: str
) -> None:
    given, others = claims(), claims(job_id="job-2", sub="key-2")
    with Ledger(tmp_path / "ledger.sqlite") as first:
        first.revoke([(kind, getattr(given, what))], through=7, now_s=time.time())
    with Ledger(tmp_path / "ledger.sqlite") as again:
        assert again.revoked_through() == 7
        gate = gate_over(again)
        with pytest.raises(GrantRevoked):
            gate.admit(offer(given))
        gate.admit(offer(others))


def test_a_revocation_that_can_not_be_kept_leaves_nothing_of_itself(ledger: Ledger) -> None:
    ledger.revoke([("job", "job-1")], through=1, now_s=time.time())
    ledger._db.execute("DROP TABLE cursors")
    with pytest.raises(DiskFull):
        ledger.revoke([("job", "job-2")], through=2, now_s=time.time())
    assert not ledger.is_revoked(("job", "job-2"))
    assert ledger.is_revoked(("job", "job-1"))
