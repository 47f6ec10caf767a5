"""The ids, digests, tokens and signatures in docs/protocol.md, made anew from their seeds."""

from __future__ import annotations

import json
import re
from base64 import b32encode
from hashlib import sha256
from typing import Any, TypeVar

import jwt
import pytest
from aegis_control.audit_check import ChainCheck
from aegis_protocol import signing
from aegis_protocol.audit import AuditHead, AuditList, AuditSeal
from aegis_protocol.control_link import Facts, JobOffer, SignalAnswer, Welcome
from aegis_protocol.fingerprint import Fingerprint, check_sdp
from aegis_protocol.frames import TransferData, TransferEnd, decode_transfer_frame
from aegis_protocol.grant import GrantClaims, sign, verify
from aegis_protocol.http_api.enrollment import EnrollRequest
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.http_api.signaling import OfferRequest
from aegis_protocol.ids import public_id
from aegis_protocol.manifest import Manifest
from aegis_protocol.rpc import (
    ArtifactFetchResult,
    ArtifactsResult,
    SourcePlanParams,
    SourcePlanResult,
    SourcePushParams,
    SourcePushResult,
)
from aegis_protocol.signing import b64, public_bytes, unb64
from aegis_protocol.source import SourcePlan, plan_digest, unique_blobs, unpack_bitmap
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from doc_pages import hex_bytes
from protocol_page import described, models, section, told

M = TypeVar("M")

ISSUER, AGENT, NEXT = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
CONTENT = {
    "boards/p4.h": b"#define LED 20\n",
    "src/main.c": b'#include "board.h"\nint main(void) { return LED; }\n',
}


def shown(model: type[M]) -> M:
    """The one value of this model in the examples; several must be the same."""
    found = [m for example in told() for m in models(example.value) if isinstance(m, model)]
    assert found
    assert all(one == found[0] for one in found), f"examples of {model.__name__} differ"
    return found[0]


def under(title: str) -> Any:
    return next(example.value for example in told() if example.where == title)


def kid(key: Ed25519PrivateKey) -> str:
    return b32encode(sha256(public_bytes(key)).digest()).decode().lower()[:16]


def test_the_table_of_keys_is_made_from_its_seeds() -> None:
    rows = section("Signed statements").table()
    names = [kid(ISSUER), kid(NEXT), public_id(public_bytes(AGENT))]
    for row, key, name in zip(rows, (ISSUER, NEXT, AGENT), names, strict=True):
        assert row[2] == f"`{b64(public_bytes(key))}`"
        assert row[3].endswith(f"`{name}`")


def test_each_statement_has_the_bytes_that_are_shown_and_the_signature_below() -> None:
    offer, answer = shown(OfferRequest), under("event `answer`")
    hello, enroll = under("frame `hello`"), shown(EnrollRequest)
    challenge = under("frame `challenge`")
    mine, theirs = check_sdp(offer.sdp).digest, check_sdp(answer.sdp).digest
    manifest = shown(Manifest).to_bytes()
    token = sha256(enroll.token.encode()).hexdigest()
    _, key = shown(Welcome).issuer_keys
    claim, head = shown(Facts), shown(AuditHead)
    made = {
        "dtls": signing.dtls_statement(hello.agent_id, answer.job_id, answer.jti, mine, theirs),
        "link": signing.link_statement(challenge.nonce, challenge.base_url),
        "enroll": signing.enroll_statement(token, enroll.base_url),
        "manifest": signing.manifest_statement(manifest),
        "issuer": signing.issuer_statement(key.kid, unb64(key.x)),
        "facts": claim.statement(),
        "audit": signing.audit_statement("head", head.seq, bytes.fromhex(head.hash), head.at),
    }
    sent = {
        "dtls": answer.signature,
        "link": hello.signature,
        "enroll": enroll.signature,
        "issuer": key.sig,
        "facts": claim.signature,
        "audit": head.sig,
    }
    for name, message in made.items():
        where = described("statement")[f"aegis-{name}-v1"]
        (text,) = where.written_in("hex")
        rest = manifest if name == "manifest" else b""
        assert hex_bytes(text) + rest == message, name
        signature = b64((ISSUER if name in ("issuer", "audit") else AGENT).sign(message))
        assert f"`{signature}`" in where.prose, f"{name}: the signature is {signature}"
        assert sent.get(name, signature) == signature, name
    assert shown(SignalAnswer).signature == answer.signature
    assert (key.kid, key.x) == (kid(NEXT), b64(public_bytes(NEXT)))


def test_the_audit_that_is_shown_is_whole() -> None:
    listed, seal = shown(AuditList), shown(AuditSeal)
    check = ChainCheck(seal.checkpoint, seal.heads, {key.kid: key.x for key in seal.keys})
    for record in listed.records:
        check.take(record)
    assert check.finish() == ()
    assert check.heads_matched == 1
    first = listed.records[0]
    assert first.facts["claim"] == shown(Facts).facts


def test_the_grant_is_genuine_and_holds_the_claims_that_are_shown() -> None:
    claims = shown(GrantClaims)
    (token,) = section("The grant").written_in("jwt")
    assert token == sign(claims, ISSUER, kid(ISSUER))
    trusted = {kid(ISSUER): ISSUER.public_key()}
    assert verify(token, trusted, audience=claims.aud, now_s=claims.iat) == claims
    header, _ = section("The grant").written_in("json")
    assert jwt.get_unverified_header(token) == json.loads(header)
    assert {shown(GrantReply).grant, shown(JobOffer).grant} == {token}
    assert shown(GrantReply).agent_key == b64(public_bytes(AGENT))
    granted = Fingerprint.parse(claims.webrtc.peer_fingerprint)
    granted.expect(check_sdp(shown(OfferRequest).sdp))


def test_the_session_description_is_the_one_that_travels() -> None:
    (text,) = section("The peer connection").written_in("sdp")
    assert shown(OfferRequest).sdp == "\r\n".join([*text.splitlines(), ""])


def test_the_manifest_is_shown_byte_by_byte() -> None:
    (text,) = described("document")["manifest.json"].written_in("json")
    raw = (text + "\n").encode()
    assert raw == shown(Manifest).to_bytes()
    listed = {artifact.name: artifact for artifact in shown(ArtifactsResult).artifacts}
    assert listed["manifest.json"].sha256 == sha256(raw).hexdigest()
    assert listed["manifest.json"].size_bytes == len(raw)


def test_the_transfer_that_is_shown_is_the_manifests_signature() -> None:
    signature = AGENT.sign(signing.manifest_statement(shown(Manifest).to_bytes()))
    data, end = (
        decode_transfer_frame(hex_bytes(described("binary transfer")[name].written_in("hex")[0]))
        for name in ("data", "end")
    )
    announced = shown(ArtifactFetchResult).transfer
    assert isinstance(data, TransferData)
    assert isinstance(end, TransferEnd)
    assert (data.data, data.transfer) == (signature, announced.transfer)
    assert (end.offset, end.sha256.hex()) == (announced.size_bytes, announced.sha256)
    assert announced.sha256 == sha256(signature).hexdigest()


def test_the_upload_that_is_shown_fits_the_plan() -> None:
    plan, pushed = shown(SourcePlan), shown(SourcePushParams)
    raw = plan.model_dump_json().encode()
    announced = shown(SourcePlanParams).plan
    assert (announced.size_bytes, announced.sha256) == (len(raw), sha256(raw).hexdigest())
    asked = shown(SourcePlanResult)
    blobs = unique_blobs(plan.files)
    missing = [
        blob for blob, lacks in zip(blobs, unpack_bitmap(unb64(asked.missing), len(blobs)),
        strict=True) if lacks
    ]  # fmt: skip
    assert [blob.path for blob in missing] == list(CONTENT)
    pack = b"".join(CONTENT.values())
    assert [sha256(data).hexdigest() for data in CONTENT.values()] == [b.sha256 for b in missing]
    assert (asked.missing_count, asked.missing_bytes) == (len(missing), len(pack))
    assert (pushed.pack.size_bytes, pushed.pack.sha256) == (len(pack), sha256(pack).hexdigest())
    assert shown(SourcePushResult).source_sha256 == plan_digest(plan)
    assert shown(Manifest).source_sha256 == plan_digest(plan)


@pytest.mark.parametrize("path", CONTENT)
def test_the_content_of_the_examples_files_is_told(path: str) -> None:
    prose = " ".join(described("document")["source plan"].prose.split())
    assert f"- `{path}`: " in prose
    for line in CONTENT[path].decode().splitlines():
        assert re.search(re.escape(line), prose)
