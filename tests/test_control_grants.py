"""Asking control for a grant: what is given, what waits, what is refused."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from aegis_protocol import grant as grants
from aegis_protocol.actions import Role
from aegis_protocol.failures.grant import GrantForeignAgent
from aegis_protocol.http_api.grants import PendingReply
from aegis_protocol.ids import public_id
from aegis_protocol.signing import unb64
from control_fixtures import FINGERPRINT, MCP, bench, board
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

pytestmark = pytest.mark.both_stores


async def test_a_grant_says_what_was_asked_and_verifies_with_the_published_key(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent(boards=(board("p4-1"),))
        client = b.client()
        reply = await client.granted(
            target="esp32p4",
            required_channels=["espctl", "serial"],
            actions=["console.read", "board.read"],
            boards=[{"chip": "esp32p4"}],
            cpu_cores=2,
            memory_mb=512,
            timeout_secs=77,
        )
        (jwk,) = (await client.ask("GET", "/.well-known/jwks.json")).body["keys"]
        keys = {jwk["kid"]: Ed25519PublicKey.from_public_bytes(unb64(jwk["x"]))}
        claims = grants.verify(reply.grant, keys, audience=agent.id, now_s=time.time())

        assert claims.sub == "mcp"
        assert claims.job_id == reply.job_id
        assert claims.iss == b.base_url
        assert claims.exp - claims.iat == pytest.approx(30)
        assert claims.actions == reply.actions == ("board.read", "console.read")
        assert claims.webrtc.allowed_channels == reply.allowed_channels == ("espctl", "serial")
        assert claims.webrtc.peer_fingerprint == FINGERPRINT
        assert claims.execution.target == "esp32p4"
        assert claims.execution.timeout_secs == 77
        assert claims.execution.boards == {"p4-1": 1}
        assert [held.id for held in reply.boards] == ["p4-1"]
        assert reply.agent_id == public_id(unb64(reply.agent_key)) == agent.id
        with pytest.raises(GrantForeignAgent):
            grants.verify(reply.grant, keys, audience="ag-another", now_s=time.time())


async def test_the_other_agents_that_could_have_taken_it_are_named(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        first, second = await b.agent("a"), await b.agent("b")
        await b.agent("c", targets=("esp32",), toolchains=())
        reply = await b.client().granted(target="esp32p4")
        assert reply.agent_id == first.id
        assert reply.candidates == (second.id,)


async def test_a_target_that_no_agent_has_waits_with_its_reasons(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent("a")
        await b.agent("b", slots=0)
        client = b.client()
        answer = await client.request(target="esp32c6")
        assert answer.status == 202
        pending = PendingReply.model_validate(answer.body)
        (reason,) = pending.reasons
        assert (reason.code, reason.agents) == ("target.missing", ("a", "b"))
        assert (await client.job(pending.job_id))["reasons"] == answer.body["reasons"]


async def test_a_job_that_waits_gets_its_grant_when_an_agent_comes(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        waits = (await client.request(target="esp32p4")).body
        assert waits["reasons"][0]["code"] == "agent.none"
        agent = await b.agent()
        await client.until_state(waits["job_id"], "assigned")
        reply = await client.granted(job_id=waits["job_id"])
        assert (reply.job_id, reply.agent_id) == (waits["job_id"], agent.id)


async def test_a_board_that_is_absent_or_of_another_chip_is_the_reason(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("c3-1", "esp32c3"),))
        client = b.client()
        for wish, detail in (({"id": "p4-9"}, "p4-9"), ({"chip": "esp32p4"}, "with esp32p4")):
            answer = await client.request(boards=[wish])
            (reason,) = answer.body["reasons"]
            assert reason["code"] == "board.missing"
            assert reason["detail"] == f"no board {detail}"


async def test_each_holding_of_a_board_has_a_higher_fence_and_one_holder(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("p4-1"),))
        client, other = b.client(), await b.client_of(Role.FLASHER)
        fences = []
        for _ in range(3):
            reply = await client.granted(boards=[{"id": "p4-1"}])
            claims = b.served.control.issuer.verify(reply.grant)
            fences.append(claims.execution.boards["p4-1"])
            held = await other.request(boards=[{"id": "p4-1"}])
            assert held.body["reasons"][0]["code"] == "board.held"
            await other.ask("DELETE", f"/jobs/{held.body['job_id']}")
            await client.ask("DELETE", f"/jobs/{reply.job_id}")
        assert fences == [1, 2, 3]


async def test_two_jobs_at_once_never_share_a_slot(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(slots=2)
        client = b.client()
        answers = await asyncio.gather(*(client.request() for _ in range(6)))
        assert sorted(answer.status for answer in answers) == [200, 200, 202, 202, 202, 202]
        first = next(a.body["job_id"] for a in answers if a.status == 200)
        await client.ask("DELETE", f"/jobs/{first}")
        waiting = [a.body["job_id"] for a in answers if a.status == 202]
        async with asyncio.timeout(5):
            while True:
                states = [(await client.job(job_id))["state"] for job_id in waiting]
                if states.count("assigned") == 1:
                    break
        assert states.count("pending") == 3


async def test_a_repeat_under_the_same_key_is_the_same_job_with_a_fresh_grant(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client, other = b.client(), await b.client_of(Role.BUILDER)
        key = {"Idempotency-Key": "once"}
        answers = await asyncio.gather(*(client.request(headers=key) for _ in range(4)))
        assert {answer.body["job_id"] for answer in answers} == {answers[0].body["job_id"]}
        assert len({answer.body["grant"] for answer in answers}) == 4
        changed = await client.request(headers=key, cpu_cores=2)
        assert (changed.status, changed.error.code) == (409, "request.idempotency_conflict")
        theirs = await other.request(headers=key)
        assert theirs.body["job_id"] != answers[0].body["job_id"]


async def test_no_key_a_wrong_key_and_two_keys_are_told_apart(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        cases: list[tuple[dict[str, str], int, str]] = [
            ({}, 401, "auth.key_missing"),
            ({"Authorization": "Basic abc"}, 401, "auth.key_missing"),
            ({"Authorization": "Bearer wrong"}, 401, "auth.key_wrong"),
            ({"X-API-Key": f"aegis_sk_{'a' * 16}_{'b' * 52}"}, 401, "auth.key_wrong"),
            ({"X-API-Key": "\xe9\xff"}, 401, "auth.key_wrong"),
            ({"X-API-Key": "one", "Authorization": "Bearer two"}, 400, "auth.keys_differ"),
        ]
        for headers, status, code in cases:
            answer = await b.client(None).request(headers=headers)
            assert (answer.status, answer.error.code) == (status, code), headers
            assert answer.error.remedy
        both = {"X-API-Key": MCP, "Authorization": f"Bearer {MCP}"}
        assert (await b.client(None).ask("GET", "/whoami", headers=both)).status == 200


async def test_a_revoked_and_an_expired_key_are_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        keyring = b.served.control.keyring
        made = await keyring.make_key(Role.BUILDER)
        assert (await b.client(made.key).ask("GET", "/whoami")).status == 200
        await b.served.control.revoking.key(made.id, "")
        brief = await keyring.make_key(Role.BUILDER, expires_in_s=-1)
        for key in (made.key, brief.key):
            answer = await b.client(key).ask("GET", "/whoami")
            assert (answer.status, answer.error.code) == (401, "auth.key_wrong")


async def test_a_role_without_the_right_is_refused_before_a_job_is_made(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        viewer = await b.client_of(Role.VIEWER)
        refused: tuple[dict[str, Any], ...] = (
            {"actions": ["build.run"]},
            {"required_channels": ["espctl", "source"]},
            {"required_channels": ["serial"]},
        )
        for fields in refused:
            answer = await viewer.request(**fields)
            assert (answer.status, answer.error.code) == (403, "role.insufficient")
        assert (await viewer.ask("GET", "/jobs")).body == {"jobs": []}
        forbidden = await viewer.ask("GET", "/services/keys")
        assert (forbidden.status, forbidden.error.code) == (403, "role.insufficient")


async def test_a_channel_that_is_not_allowed_is_named_with_those_that_are(tmp: Path) -> None:
    async with bench(tmp / "s", allowed_channels="espctl, pty") as b:
        await b.agent()
        limited = await b.client_of(Role.FLASHER, channels=("espctl",))
        for client, channels, refused, allowed in (
            (b.client(), ["espctl", "serial"], ["serial"], ["espctl", "pty"]),
            (limited, ["pty"], ["pty"], ["espctl"]),
            (b.client(), ["telnet"], ["telnet"], ["espctl", "pty"]),
        ):
            answer = await client.request(required_channels=channels)
            assert (answer.status, answer.error.code) == (403, "channel.not_allowed")
            assert answer.error.facts == {"channels": refused, "allowed": allowed}


async def test_limits_of_a_key_hold_for_targets_and_boards(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("p4-1"), board("p4-2")))
        client = await b.client_of(Role.FLASHER, targets=("esp32",), boards=("p4-2",))
        target = await client.request(target="esp32p4")
        assert (target.status, target.error.code) == (403, "target.not_allowed")
        named = await client.request(boards=[{"id": "p4-1"}])
        assert (named.status, named.error.code) == (403, "board.not_allowed")
        chosen = await client.granted(boards=[{"chip": "esp32p4"}])
        assert [held.id for held in chosen.boards] == ["p4-2"]
        shown = (await client.ask("GET", "/boards")).body["boards"]
        assert [row["board"]["id"] for row in shown] == ["p4-2"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"peer_fingerprint": "sha-256:AB"}, "peer_fingerprint"),
        ({"required_channels": []}, "required_channels"),
        ({"required_channels": ["UPPER"]}, "required_channels.0"),
        ({"target": "no chip"}, "target"),
        ({"cpu_cores": 0}, "cpu_cores"),
        ({"cpu_cores": "many"}, "cpu_cores"),
        ({"timeout_secs": 99_999}, "timeout_secs"),
        ({"actions": ["rm -rf"]}, "actions.0"),
        ({"boards": [{"chip": "?"}]}, "boards.0.chip"),
        ({"toolchain": {"kind": "platformio", "version": "newest"}}, "toolchain.version"),
        ({"labels": {"site": "x" * 81}}, "labels.site"),
    ],
)
async def test_a_field_that_is_wrong_is_named(
    tmp: Path, fields: dict[str, Any], field: str
) -> None:
    async with bench(tmp / "s") as b:
        answer = await b.client().request(**fields)
        assert (answer.status, answer.error.code) == (400, "request.invalid")
        assert answer.error.facts["field"] == field
        assert answer.error.message.startswith(f"{field}: ")


async def test_what_is_no_json_or_too_much_of_it_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        for data in (b"", b"{", b"\xff\xfe", b"[" * 30_000, b'{"a": NaN}'):
            answer = await client.ask("POST", "/grant/request", data=data)
            assert (answer.status, answer.error.code) == (400, "request.invalid"), data[:10]
        large = await client.ask("POST", "/grant/request", data=b" " * 70_000)
        assert (large.status, large.error.code) == (413, "request.too_large")


async def test_an_unknown_target_agent_or_job_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        refused: tuple[tuple[dict[str, Any], int, str], ...] = (
            ({"target": "esp99"}, 400, "target.unknown"),
            ({"agent_id": "nobody"}, 404, "agent.not_found"),
            ({"job_id": "nothing"}, 404, "job.not_found"),
        )
        for fields, status, code in refused:
            answer = await client.request(**fields)
            assert (answer.status, answer.error.code) == (status, code)
        assert (await client.ask("GET", "/jobs")).body == {"jobs": []}


async def test_a_target_that_only_an_agent_knows_is_no_unknown_one(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(targets=("esp64x",), toolchains=())
        assert (await b.client().granted(target="esp64x")).agent_name == "bench"


async def test_too_many_waiting_jobs_of_one_identity_are_refused(tmp: Path) -> None:
    async with bench(tmp / "s", max_waiting_jobs=3) as b:
        client, other = b.client(), await b.client_of(Role.BUILDER)
        answers = await asyncio.gather(*(client.request() for _ in range(5)))
        assert sorted(a.status for a in answers) == [202, 202, 202, 429, 429]
        refused = next(a for a in answers if a.status == 429)
        assert refused.error.code == "request.rate_limited"
        assert refused.error.retryable
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await other.request()).status == 202


async def test_another_identitys_job_does_not_exist_for_me(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent(boards=(board("p4-1"),))
        mine, theirs = b.client(), await b.client_of(Role.FLASHER)
        job_id = (await mine.granted(boards=[{"id": "p4-1"}])).job_id
        for method, path in (
            ("GET", f"/jobs/{job_id}"),
            ("DELETE", f"/jobs/{job_id}"),
            ("GET", f"/signaling/{job_id}/events"),
        ):
            answer = await theirs.ask(method, path)
            assert (answer.status, answer.error.code) == (404, "job.not_found")
        stolen = await theirs.request(job_id=job_id)
        assert (stolen.status, stolen.error.code) == (404, "job.not_found")
        assert (await theirs.ask("GET", "/jobs")).body == {"jobs": []}
        (row,) = (await theirs.ask("GET", "/boards")).body["boards"]
        assert (row["holder"], row["board"]["state"]) == ("another", "held")
        (row,) = (await mine.ask("GET", "/boards")).body["boards"]
        assert row["holder"] == job_id
        operator = await b.client_of(Role.OPERATOR)
        assert [job["id"] for job in (await operator.ask("GET", "/jobs")).body["jobs"]] == [job_id]


async def test_previous_secrets_count_and_empty_ones_do_not(tmp: Path) -> None:
    settings = {"mcp_auth_secret": "new secret", "mcp_auth_secret_previous": "old secret"}
    async with bench(tmp / "s", **settings) as b:
        for key, status in (("new secret", 200), ("old secret", 200), ("", 401), ("x", 401)):
            headers = {"X-API-Key": key}
            answer = await b.client(None).ask("GET", "/whoami", headers=headers)
            assert answer.status == status
    async with bench(tmp / "s", mcp_auth_secret="", agent_auth_secret=" ") as b:
        answer = await b.client(None).ask("GET", "/whoami", headers={"X-API-Key": ""})
        assert answer.error.code == "auth.key_missing"
        request = b.machine().enroll_request(" ").model_dump(mode="json")
        answer = await b.client(None).ask("POST", "/agents/enroll", request)
        assert (answer.status, answer.error.code) == (403, "enroll.refused")
