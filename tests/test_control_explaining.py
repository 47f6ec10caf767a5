"""`verify-token`: what a secret is, good or why not, and never the secret itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from aegis_protocol.actions import Role
from aegis_protocol.control_link import JobOffer
from aegis_protocol.http_api.keys import TokenVerdict
from control_fixtures import AGENTS, MCP, Bench, bench
from control_runs import call, run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


async def _verdict(b: Bench, secret: str) -> TokenVerdict:
    operator = await b.client_of(Role.OPERATOR)
    answer = await operator.ask("POST", "/services/verify-token", {"token": secret})
    assert answer.status == 200, answer.body
    assert secret not in str(answer.body)
    return TokenVerdict.model_validate(answer.body)


async def test_a_key_is_explained_whether_it_is_good_or_not(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        keyring = b.served.control.keyring
        limits = {"targets": ("esp32p4",), "jobs": ("2",)}
        good = await keyring.make_key(Role.BUILDER, name="ci", limits=limits, expires_in_s=60)
        verdict = await _verdict(b, good.key)
        assert (verdict.kind, verdict.valid, verdict.name) == ("key", True, "ci")
        assert (verdict.role, verdict.limits) == (Role.BUILDER, limits)
        assert "build.run" in verdict.actions and "board.flash" not in verdict.actions
        assert verdict.expires_at is not None and 50 < verdict.expires_at - time.time() <= 60

        over = await keyring.make_key(Role.BUILDER, expires_in_s=-1)
        revoked = await keyring.make_key(Role.BUILDER)
        await b.served.control.revoking.key(revoked.id, "")
        for key, why in ((over, "expired"), (revoked, "revoked")):
            verdict = await _verdict(b, key.key)
            assert (verdict.valid, verdict.code, verdict.id) == (False, "auth.key_wrong", key.id)
            assert why in verdict.why
            assert verdict.role is Role.BUILDER, "what it was for is still told"

        forged = good.key[:-8] + "aaaaaaaa"
        verdict = await _verdict(b, forged)
        assert (verdict.valid, verdict.id, verdict.role) == (False, None, None)


async def test_shared_secrets_and_things_that_are_none_are_told_apart(tmp: Path) -> None:
    async with bench(tmp / "s", mcp_auth_secret_previous="the one before, long enough") as b:
        for secret in (MCP, "the one before, long enough"):
            verdict = await _verdict(b, secret)
            assert (verdict.kind, verdict.valid, verdict.identity) == ("shared_secret", True, "mcp")
            assert ("MCP_AUTH_SECRET_PREVIOUS" in verdict.why) == (secret != MCP)
        verdict = await _verdict(b, AGENTS)
        assert (verdict.kind, verdict.valid, verdict.role) == ("agent_secret", True, None)
        for nonsense in ("hello", "aegis_sk_", "ey.ey.ey", "eyJhbGciOiJub25lIn0.e30.", "\u2603"):
            verdict = await _verdict(b, nonsense)
            assert not verdict.valid, nonsense


async def test_an_enrolment_token_is_explained_until_it_is_used(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        keyring = b.served.control.keyring
        made = await keyring.make_token(ttl_s=60, name="lab")
        verdict = await _verdict(b, made.token)
        assert (verdict.kind, verdict.valid, verdict.name) == ("enroll_token", True, "lab")
        await b.machine("lab").enroll(made.token)
        verdict = await _verdict(b, made.token)
        assert (verdict.valid, verdict.code) == (False, "enroll.refused")
        assert "used by ag-" in verdict.why
        late = await keyring.make_token(ttl_s=-1, name=None)
        assert "expired" in (await _verdict(b, late.token)).why
        back = await keyring.make_token(ttl_s=60, name=None)
        await keyring.revoke_token(back.id)
        assert "revoked" in (await _verdict(b, back.token)).why


async def test_a_grant_is_explained_with_its_job_and_what_stands_against_it(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent("lab"), b.client()
        grant = await client.granted(target="esp32p4", required_channels=["espctl", "pty"])
        verdict = await _verdict(b, grant.grant)
        assert (verdict.kind, verdict.valid, verdict.code) == ("grant", True, None)
        assert (verdict.job_id, verdict.job_state) == (grant.job_id, "assigned")
        assert (verdict.agent_id, verdict.name) == (agent.id, "lab")
        assert (verdict.channels, verdict.target) == (("espctl", "pty"), "esp32p4")
        assert verdict.expires_at == grant.grant_expires_at

        await client.offer(grant)
        await agent.next(JobOffer)
        assert "offered" in (await _verdict(b, grant.grant)).why
        await client.ask("DELETE", f"/jobs/{grant.job_id}")
        verdict = await _verdict(b, grant.grant)
        assert (verdict.valid, verdict.code) == (False, "job.over")


async def test_an_expired_grant_says_what_it_was_for_and_a_forged_one_nothing(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp / "s") as b:
        await b.agent("lab")
        grant = await b.client().granted()
        now = time.time()
        operator = await b.client_of(Role.OPERATOR)
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda: now + 120)
            answer = await operator.ask("POST", "/services/verify-token", {"token": grant.grant})
        verdict = TokenVerdict.model_validate(answer.body)
        assert (verdict.valid, verdict.code) == (False, "grant.expired")
        assert (verdict.job_id, verdict.channels) == (grant.job_id, ("espctl",))

        claims = jwt.decode(grant.grant, options={"verify_signature": False})
        kid = jwt.get_unverified_header(grant.grant)["kid"]
        stranger = Ed25519PrivateKey.generate()
        for headers in ({"kid": kid}, {"kid": "other"}):
            forged = jwt.encode(claims, stranger, algorithm="EdDSA", headers=headers)
            verdict = await _verdict(b, forged)
            assert (verdict.valid, verdict.job_id, verdict.channels) == (False, None, ())
            assert verdict.code is not None and verdict.code.startswith("grant.")


async def test_the_command_reads_a_file_or_its_input_and_exits_by_the_verdict(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        good = await b.served.control.keyring.make_key(Role.VIEWER, name="ci")
        (tmp / "key").write_text(good.key + "\n")
        shown = await call(tmp, "verify-token", str(tmp / "key"))
        assert shown.code == 0, shown.err
        for word in ("valid", "yes", good.id, "ci", "viewer", "board.read", "never ends"):
            assert word in shown.out
        assert good.key not in shown.out
        piped = await run(tmp, "verify-token", "--json", stdin=b"aegis_sk_guessed")
        assert piped.code == 1
        assert json.loads(piped.out)["valid"] is False


async def test_a_secret_in_an_argument_and_what_is_no_secret_are_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        good = await b.served.control.keyring.make_key(Role.VIEWER)
        typed = await call(tmp, "verify-token", good.key)
        assert (typed.code, "[request.invalid]" in typed.err) == (9, True)
        assert good.key not in typed.err + typed.out
        (tmp / "binary").write_bytes(os.urandom(64) + b"\0")
        (tmp / "huge").write_bytes(b"a" * 20_000)
        for name in ("binary", "huge", "missing"):
            refused = await call(tmp, "verify-token", str(tmp / name))
            assert (refused.code, "[request.invalid]" in refused.err) == (9, True), name
        empty = await run(tmp, "verify-token", stdin=b"")
        assert (empty.code, "Traceback" in empty.err) == (9, False)
        assert sys.executable not in empty.err


async def test_only_an_operator_may_ask_and_nothing_is_logged(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        made = await b.served.control.keyring.make_key(Role.VIEWER)
        viewer = b.client(made.key)
        refused = await viewer.ask("POST", "/services/verify-token", {"token": MCP})
        assert (refused.status, refused.error.code) == (403, "role.insufficient")
        with capture_logs() as logs:
            await _verdict(b, made.key)
        assert made.key not in str(logs)
