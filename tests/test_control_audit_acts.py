"""Which acts the audit has, and the audit as an operator reads, checks, exports and prunes it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aegis_control.control import Control
from aegis_control.issuer import Issuer
from aegis_protocol.actions import Role
from aegis_protocol.audit import AuditSeal
from aegis_protocol.control_link import Facts, JobMoved
from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.issuer import IssuerKey, Jwk, Jwks
from aegis_protocol.signing import b64
from aegis_protocol.states import JobState
from control_fixtures import AGENTS, Bench, FakeAgent, bench, key_of
from control_runs import WITHIN_S, call, served
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs
from waiting import until

pytestmark = pytest.mark.both_stores

DIGEST = "2e9d66bfb134cf02424b7affbf40a7f0e4b70e4f6c4b2c1af5ce802cc96a12c7"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


async def acts(b: Bench, **query: str) -> list[dict[str, Any]]:
    client = await b.client_of(Role.OPERATOR)
    words = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await client.ask("GET", f"/services/audit?{words}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.body["records"]
    return found


async def until_act(b: Bench, what: str) -> dict[str, Any]:
    """Wait for an act that an agent's frame brings."""
    async with asyncio.timeout(5):
        while not (found := await acts(b, what=what)):
            await asyncio.sleep(0.02)
    return found[-1]


async def test_an_end_that_an_agent_tells_is_the_agents_act(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent, target="esp32p4")
        error = ErrorBody(code="build.failed", message="no")
        await agent.send(JobMoved(job_id=grant.job_id, state=JobState.FAILED, error=error))
        await client.until_state(grant.job_id, "failed")
        (ended,) = await acts(b, what="job.ended", job=grant.job_id)
        assert (ended["who"], ended["agent_id"], ended["source"]) == (
            agent.id,
            agent.id,
            "127.0.0.1",
        )
        assert (ended["decision"], ended["outcome"]) == ("failed", "failed: build.failed")
        assert (ended["facts"]["identity"], ended["facts"]["target"]) == ("mcp", "esp32p4")


async def test_an_end_that_a_person_orders_is_that_persons_act(tmp: Path) -> None:
    async with bench(tmp / "s", trusted_proxies="127.0.0.1") as b:
        client = await b.client_of(Role.BUILDER)
        waiting = (await client.request()).body["job_id"]
        answer = await client.ask(
            "DELETE", f"/jobs/{waiting}", headers={"X-Forwarded-For": "192.0.2.9"}
        )
        assert answer.status == 200
        (ended,) = await acts(b, what="job.ended")
        who = (await client.ask("GET", "/whoami")).body["identity"]
        assert (ended["who"], ended["source"]) == (who, "192.0.2.9")
        assert ended["outcome"] == "canceled: job.canceled"


async def test_agents_that_join_and_are_removed_are_in_the_audit(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, operator = await b.agent("lab-1"), await b.client_of(Role.OPERATOR)
        assert (await operator.ask("DELETE", f"/services/agents/{agent.id}")).status == 204
        (joined,) = await acts(b, what="agent.enrolled")
        (removed,) = await acts(b, what="agent.removed")
        assert (joined["who"], joined["outcome"]) == (agent.id, "lab-1")
        assert (removed["agent_id"], removed["outcome"]) == (agent.id, "lab-1")
        assert removed["who"] == (await operator.ask("GET", "/whoami")).body["identity"]


def claim(agent: FakeAgent, job_id: str, facts: dict[str, Any], **fields: Any) -> Facts:
    unsigned = Facts(job_id=job_id, facts=facts, at=time.time())
    signature = b64(agent.key.sign(unsigned.statement()))
    return unsigned.model_copy(update={"signature": signature} | fields)


async def test_an_agents_claims_are_kept_with_its_signature(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        built = {"task_id": "t", "artifacts": {"firmware.bin": "0" * 64, "manifest.json": DIGEST}}
        await agent.send(claim(agent, grant.job_id, built))
        kept = await until_act(b, "agent.claimed")
        assert (kept["who"], kept["job_id"]) == (agent.id, grant.job_id)
        assert kept["artifact_sha256"] == DIGEST
        again = Facts(
            job_id=kept["job_id"],
            facts=kept["facts"]["claim"],
            at=kept["facts"]["at"],
            signature=kept["facts"]["signature"],
        )
        agent.key.public_key().verify(agent.key.sign(again.statement()), again.statement())
        assert again.signature == b64(agent.key.sign(again.statement()))

        flashed = {"board": "bd-1", "mac": "60:55:f9:00:00:01", "elf_sha256": DIGEST}
        await agent.send(claim(agent, grant.job_id, flashed))
        async with asyncio.timeout(5):
            while len(found := await acts(b, what="agent.claimed")) < 2:
                await asyncio.sleep(0.02)
        assert (found[1]["board_id"], found[1]["outcome"]) == ("bd-1", "60:55:f9:00:00:01")


async def test_claims_of_anothers_job_or_with_a_wrong_signature_are_not_kept(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, other, client = await b.agent("one"), await b.agent("two"), b.client()
        grant = await b.running(client, agent, agent_id="one")
        await other.send(claim(other, grant.job_id, {"board": "stolen"}))
        await agent.send(claim(other, grant.job_id, {"board": "by another key"}))
        await agent.send(claim(agent, grant.job_id, {"board": "true"}))
        await until_act(b, "agent.claimed")
        assert [act["board_id"] for act in await acts(b, what="agent.claimed")] == ["true"]


async def test_only_operators_read_the_audit(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        flasher = await b.client_of(Role.FLASHER)
        for method, path in (
            ("GET", "/services/audit"),
            ("GET", "/services/audit/seal"),
            ("POST", "/services/audit/head"),
        ):
            assert (await flasher.ask(method, path)).error.code == "role.insufficient"


@pytest.mark.parametrize(
    "wrong", ["after=x", "limit=0", "limit=1001", "since=nan", "who=", "job=%0a"]
)
async def test_a_wrong_word_of_a_query_is_named(tmp: Path, wrong: str) -> None:
    async with bench(tmp / "s") as b:
        client = await b.client_of(Role.OPERATOR)
        refused = await client.ask("GET", f"/services/audit?{wrong}")
        assert refused.status == 400
        assert refused.error.facts["field"] == wrong.partition("=")[0]


async def test_an_operator_reads_checks_exports_and_prunes_it(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent("lab-1"), b.client()
        for _ in range(3):
            job_id = (await client.request(agent_id="lab-1", target="esp32p4")).body["job_id"]
            assert (await client.ask("DELETE", f"/jobs/{job_id}")).status == 200

        shown = await call(tmp, "audit", "--what", "job.ended", "--since", "1h")
        assert len(shown.out.splitlines()) == 4
        for word in ("mcp", "127.0.0.1", "job.ended", "failed", job_id, agent.id, "canceled"):
            assert word in shown.out.splitlines()[-1]
        of_job = await call(tmp, "audit", "--job", job_id, "--who", "mcp", "--json")
        assert {record["job_id"] for record in of_job.data["records"]} == {job_id}
        assert (await call(tmp, "audit", "--since", "yesterday")).code == 9

        head = (await call(tmp, "audit", "head")).out.strip()
        whole = await call(tmp, "audit", "verify", "--head", head, "--json")
        assert (whole.code, whole.data["whole"], whole.data["problems"]) == (0, True, [])
        assert (await call(tmp, "audit", "verify", "--head", "nonsense")).code == 9

        exported = await call(tmp, "audit", "export", "--output", str(tmp / "a.jsonl"))
        assert exported.code == 0, exported.err
        printed = await call(tmp, "audit", "export")
        assert printed.out.splitlines()[1:] == (tmp / "a.jsonl").read_text().splitlines()[1:]
        keys = await b.client().ask("GET", "/.well-known/jwks.json")
        (tmp / "jwks.json").write_text(json.dumps(keys.body))
        offline = "audit", "verify", "--jwks", str(tmp / "jwks.json"), "--head", head, "--file"
        assert (await call(tmp, *offline, str(tmp / "a.jsonl"))).code == 0
        lines = (tmp / "a.jsonl").read_text().splitlines()
        (tmp / "cut.jsonl").write_text("\n".join(lines[:-1]))
        assert "tail_cut" in (await call(tmp, *offline, str(tmp / "cut.jsonl"))).out
        (tmp / "odd.jsonl").write_text("\n".join([*lines[:2], "{}"]))
        odd = await call(tmp, *offline, str(tmp / "odd.jsonl"))
        assert "audit.file_unusable" in odd.err and "line 3" in odd.err

        assert (await call(tmp, "audit", "prune", "--keep-days", "0")).code == 9
        pruned = await call(tmp, "audit", "prune", "--keep-days", "0", "--yes", "--json")
        assert pruned.data["removed"] > 3
        after = await call(tmp, "audit", "verify", "--head", head, "--json")
        assert (after.code, after.data["records"], after.data["whole"]) == (0, 1, True)


async def test_what_a_role_does_not_allow_is_kept_once_and_looking_is_not(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        viewer = b.client(await key_of(b.served, Role.VIEWER))
        who = (await viewer.ask("GET", "/whoami")).body["identity"]
        for _ in range(3):
            refused = await viewer.ask("POST", "/services/agents/lab-1/pause", {})
            assert (refused.status, refused.error.code) == (403, "role.insufficient")
        lease = await viewer.ask("POST", "/leases", {"board": {"id": "p4"}, "for_secs": 60})
        assert lease.status == 403
        assert (await viewer.ask("GET", "/services/keys")).status == 403
        kept = (await call(tmp, "audit", "--what", "request.denied", "--json")).data["records"]
        shown = await call(tmp, "audit", "--what", "request.denied")
    assert [(r["facts"]["method"], r["facts"]["path"]) for r in kept] == [
        ("POST", "/services/agents/lab-1/pause"),
        ("POST", "/leases"),
    ]
    for record in kept:
        assert (record["who"], record["source"], record["decision"]) == (who, "127.0.0.1", "denied")
        assert (record["rule"], record["outcome"]) == ("role viewer", "role.insufficient")
    assert "denied by role viewer" in shown.out and "/services/agents/lab-1/pause" in shown.out


async def test_a_refused_grant_names_the_board_it_was_about(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client(await key_of(b.served, Role.FLASHER, boards=("p4",)))
        assert (await client.request(boards=[{"id": "s3"}])).status == 403
        (kept,) = (await call(tmp, "audit", "--what", "grant.denied", "--json")).data["records"]
    assert (kept["board_id"], kept["outcome"]) == ("s3", "board.not_allowed")


async def _changed(control: Control) -> None:
    """Have the issuer's key change, and wait until the new one signs."""
    made = (await control.rotation.rotate())[-1].key.kid
    await until(lambda: control.issuer.kid == made, within_s=30)


async def test_an_export_is_whole_for_who_has_keys_from_before_or_after_a_change(
    tmp: Path,
) -> None:
    async with bench(tmp / "s", seal_key="what replicas share lies sealed with this") as b:
        control, client = b.served.control, b.client()
        for name in ("first", "second", "last"):
            assert (await call(tmp, "audit", "head")).code == 0
            jwks = await client.ask("GET", "/.well-known/jwks.json")
            (tmp / f"{name}.json").write_text(json.dumps(jwks.body))
            if name != "last":
                await _changed(control)
        assert (await call(tmp, "audit", "export", "--output", str(tmp / "a.jsonl"))).code == 0
        offline = "audit", "verify", "--json", "--file", str(tmp / "a.jsonl"), "--jwks"
        first = await call(tmp, *offline, str(tmp / "first.json"))
        assert (first.code, first.data["heads_unknown"]) == (0, 0), first.out
        last = await call(tmp, *offline, str(tmp / "last.json"))
        assert (last.code, last.data["problems"]) == (0, []), last.out
        assert last.data["heads_unknown"] >= 1
        stranger = Issuer(Ed25519PrivateKey.generate()).jwks()
        (tmp / "strange.json").write_text(stranger.model_dump_json())
        strange = await call(tmp, *offline, str(tmp / "strange.json"))
        assert strange.code == 1
        assert {problem["code"] for problem in strange.data["problems"]} == {"unsigned"}


@pytest.mark.sqlite
@pytest.mark.parametrize("x", ["", "!", "A" * 42, "A" * 100])
async def test_a_key_set_with_what_is_no_key_is_said_to_be_none(tmp: Path, x: str) -> None:
    successor = IssuerKey(kid="new", x="A" * 43, prev_kid="old", sig="A" * 86)
    seal = AuditSeal(keys=(successor,))
    (tmp / "a.jsonl").write_text(json.dumps({"type": "seal"} | seal.model_dump(mode="json")))
    (tmp / "keys.json").write_text(Jwks(keys=(Jwk(kid="old", x=x),)).model_dump_json())
    offline = "audit", "verify", "--file", str(tmp / "a.jsonl"), "--jwks"
    ended = await call(tmp, *offline, str(tmp / "keys.json"))
    assert ended.code == 1
    assert "audit.file_unusable" in ended.err and "Traceback" not in ended.err


@pytest.mark.sqlite
async def test_verify_names_what_was_changed_behind_controls_back(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        for _ in range(3):
            job_id = (await client.request()).body["job_id"]
            await client.ask("DELETE", f"/jobs/{job_id}")
        assert (await call(tmp, "audit", "verify")).code == 0
        with closing(sqlite3.connect(tmp / "s" / "control.db")) as db:
            db.execute("DROP TRIGGER audit_written_once")
            db.execute("UPDATE audit SET who = 'nobody' WHERE seq = 2")
            db.commit()
        found = await call(tmp, "audit", "verify")
        assert found.code == 1
        assert "audit.broken" in found.err
        assert "2  altered" in found.out


async def test_follow_goes_on_with_what_comes_through_a_restart(tmp: Path) -> None:
    """Two controls after each other with one state; the command outlives the first."""

    async def enroll(base_url: str, name: str) -> None:
        async with aiohttp.ClientSession() as session:
            await FakeAgent(session, base_url, name=name).enroll()

    async with served(tmp, AGENT_AUTH_SECRET=AGENTS) as first:
        await enroll(first.base_url, "one")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aegis_control", "audit", "--follow", "--json"),
            *("--what", "agent.enrolled", "--state-dir", str(tmp / "s")),
            env={**os.environ, "AEGIS_CONFIG_DIR": str(tmp / "etc")},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(WITHIN_S):
                assert json.loads(await process.stdout.readline())["outcome"] == "one"
                await enroll(first.base_url, "two")
                assert json.loads(await process.stdout.readline())["outcome"] == "two"
                first.process.terminate()
                await first.process.wait()
                async with served(tmp, AGENT_AUTH_SECRET=AGENTS) as second:
                    await enroll(second.base_url, "three")
                    assert json.loads(await process.stdout.readline())["outcome"] == "three"
        finally:
            process.kill()
            await process.wait()
