"""Ids, signed statements and grants: to the byte, and only the right key's."""

from __future__ import annotations

import json
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from aegis_protocol import ids, signing
from aegis_protocol.actions import Action
from aegis_protocol.failures.grant import (
    GrantError,
    GrantExpired,
    GrantForeignAgent,
    GrantInvalid,
    GrantNotYetValid,
    GrantUnknownIssuer,
)
from aegis_protocol.grant import (
    LEEWAY_S,
    MAX_GRANT_BYTES,
    Execution,
    GrantClaims,
    WebRtcLimits,
    sign,
    verify,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
NOW_S = 1_790_000_000.25
CLAIMS = GrantClaims(
    iss="https://control.example.org",
    sub="someone",
    aud="ag-one",
    jti="jti-1",
    iat=NOW_S,
    nbf=NOW_S,
    exp=NOW_S + 30,
    job_id="job-1",
    attempt=2,
    actions=(Action.BUILD_RUN,),
    webrtc=WebRtcLimits(
        allowed_channels=("espctl",), peer_fingerprint="sha-256:" + ":".join(["AB"] * 32)
    ),
    execution=Execution(target="esp32p4", boards={"b": 3}),
)
PLAIN = CLAIMS.model_dump(mode="json")


def checked(token: str, *, audience: str = "ag-one", now_s: float = NOW_S + 1) -> GrantClaims:
    return verify(token, {"k1": KEY.public_key()}, audience=audience, now_s=now_s, skew_s=0.5)


def token_of(payload: dict[str, Any], *, key: Any = KEY, algorithm: str = "EdDSA") -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": "k1"})


def test_ids_are_uuids_of_version_7_and_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(ids.new_id()) for _ in range(200)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 200
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in made)
    times = [one.int >> 80 for one in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= after


def test_secrets_are_lower_case_base32_of_the_size_asked_for() -> None:
    secrets = {ids.new_secret() for _ in range(50)}
    assert len(secrets) == 50
    assert {len(secret) for secret in secrets} == {52}
    assert set("".join(secrets)) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert len(ids.new_secret(80)) == 16


def test_an_agents_id_is_its_keys_hash() -> None:
    one, two = (signing.public_bytes(key) for key in (KEY, OTHER))
    assert ids.public_id(one) == ids.public_id(bytes(one)) != ids.public_id(two)
    assert ids.public_id(one).startswith("ag-")
    assert len(ids.public_id(one)) == 23


def test_each_field_of_a_statement_has_its_length_before_it() -> None:
    assert signing.statement("a", b"\0\xff", "é") == (
        b"\0\0\0\x01a" + b"\0\0\0\x02\0\xff" + b"\0\0\0\x02\xc3\xa9"
    )


def test_no_two_lists_of_fields_have_one_statement() -> None:
    made = [
        signing.statement(*fields)
        for fields in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["a", "b", "c"])
    ]
    assert len(set(made)) == len(made)


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    made = {
        signing.link_statement("n", "u"),
        signing.enroll_statement("n", "u"),
        signing.issuer_statement("n", b"u"),
        signing.statement("n", "u"),
    }
    assert len(made) == 4


def test_only_the_right_keys_signature_over_the_right_bytes_is_verified() -> None:
    message = signing.manifest_statement(b"{}")
    signature, public = KEY.sign(message), signing.public_bytes(KEY)
    assert signing.verified(public, signature, message)
    assert signing.public_bytes(KEY.public_key()) == public
    assert not signing.verified(public, signature, message + b" ")
    assert not signing.verified(signing.public_bytes(OTHER), signature, message)
    assert not signing.verified(public, signature[:-1], message)
    assert not signing.verified(b"short", signature, message)
    assert not signing.verified(public, b"", message)


@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", b"\xff\xfe\xfd", bytes(32)])
def test_base64url_has_no_padding_and_comes_back(data: bytes) -> None:
    text = signing.b64(data)
    assert "=" not in text
    assert signing.unb64(text) == data
    assert urlsafe_b64decode(text + "=" * (-len(text) % 4)) == data


@pytest.mark.parametrize("text", ["a+b/", "YQ==", "YQ =", "é", "a", "\n", "YQ\0"])
def test_what_is_no_base64url_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        signing.unb64(text)


def test_a_grant_comes_back_as_it_was_signed() -> None:
    assert checked(sign(CLAIMS, KEY, "k1")) == CLAIMS


def test_a_claim_that_this_version_does_not_know_is_ignored() -> None:
    assert checked(token_of({**PLAIN, "shoe_size": 44})) == CLAIMS


def test_a_grant_of_an_unknown_issuer_is_refused() -> None:
    with pytest.raises(GrantUnknownIssuer):
        checked(sign(CLAIMS, KEY, "k2"))
    with pytest.raises(GrantUnknownIssuer):
        checked(jwt.encode(PLAIN, KEY, algorithm="EdDSA"))


def forgeries() -> Iterator[tuple[str, str]]:
    good = sign(CLAIMS, KEY, "k1")
    head, body, signature = good.split(".")
    yield "another key", sign(CLAIMS, OTHER, "k1")
    yield "no signature", f"{head}.{body}."
    yield "another body", f"{head}.{signing.b64(json.dumps(PLAIN).encode())}.{signature}"
    yield "algorithm none", token_of(PLAIN, key="", algorithm="none")
    yield (
        "the public key as a secret",
        token_of(PLAIN, key=signing.public_bytes(KEY), algorithm="HS256"),
    )
    yield "cut", good[:-8]
    yield "empty", ""
    yield "no JWT", "a.b.c"
    yield "too large", good + "a" * MAX_GRANT_BYTES
    yield "a life too long", token_of({**PLAIN, "exp": NOW_S + 31})
    yield "no fingerprint", token_of({**PLAIN, "webrtc": {"allowed_channels": ["espctl"]}})
    yield "an unknown action", token_of({**PLAIN, "actions": ["root"]})
    yield "an end that is no number", token_of({**PLAIN, "exp": float("nan")})
    yield "an infinite beginning", token_of({**PLAIN, "iat": float("inf")})
    for name in ("iss", "sub", "jti", "iat", "nbf", "exp", "job_id", "attempt", "execution"):
        yield f"no {name}", token_of({k: v for k, v in PLAIN.items() if k != name})


FORGERIES = dict(forgeries())


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("name", FORGERIES)
def test_a_grant_that_is_not_whole_and_genuine_is_invalid(name: str) -> None:
    with pytest.raises((GrantInvalid, GrantUnknownIssuer)) as refused:
        checked(FORGERIES[name])
    assert isinstance(refused.value, GrantInvalid)
    assert not refused.value.retryable


def test_a_grant_for_another_agent_is_refused() -> None:
    with pytest.raises(GrantForeignAgent):
        checked(sign(CLAIMS, KEY, "k1"), audience="ag-two")


@pytest.mark.parametrize("now_s", [NOW_S - LEEWAY_S, NOW_S, NOW_S + 30, NOW_S + 30 + LEEWAY_S])
def test_half_a_minute_of_skew_is_forgiven(now_s: float) -> None:
    assert checked(sign(CLAIMS, KEY, "k1"), now_s=now_s) == CLAIMS


@pytest.mark.parametrize(
    ("now_s", "error"),
    [(NOW_S - LEEWAY_S - 0.1, GrantNotYetValid), (NOW_S + 30 + LEEWAY_S + 0.1, GrantExpired)],
)
def test_more_skew_is_refused_with_both_clocks(now_s: float, error: type[GrantError]) -> None:
    with pytest.raises(error) as refused:
        checked(sign(CLAIMS, KEY, "k1"), now_s=now_s)
    assert refused.value.facts["now"] == now_s
    assert refused.value.facts["skew_s"] == 0.5
