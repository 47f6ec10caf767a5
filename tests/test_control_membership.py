"""Who may join and who belongs no longer: tokens, enrolling again, removal and revocation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aegis_control.store import agents, tables
from aegis_protocol.actions import Role
from aegis_protocol.signing import b64, public_bytes
from control_fixtures import AGENTS, Answered, Bench, FakeAgent, bench
from control_runs import call
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from databases import database_kind, database_url, postgres
from sqlalchemy import select
from structlog.testing import capture_logs

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


async def _enrolls(b: Bench, machine: FakeAgent, token: str = AGENTS) -> Answered:
    request = machine.enroll_request(token).model_dump(mode="json")
    return await b.client(None).ask("POST", "/agents/enroll", request)


async def _acts(b: Bench) -> list[dict[str, Any]]:
    async with b.served.control.database.read() as conn:
        rows = await conn.execute(select(tables.audit).order_by(tables.audit.c.at))
        return [dict(row._mapping) for row in rows]


async def test_tokens_are_made_listed_and_revoked_without_showing_them_again(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        made = (await call(tmp, "enroll-token", "create", "--name", "lab", "--json")).data
        spare = (await call(tmp, "enroll-token", "create")).out.strip()
        assert spare.split("_")[2] != made["id"]
        used = await _enrolls(b, b.machine("lab"), made["token"])
        assert used.status == 200

        rows = (await call(tmp, "enroll-token", "list", "--json")).data["tokens"]
        assert [(row["name"], row["used_by"]) for row in rows] == [
            ("lab", used.body["agent_id"]),
            (None, None),
        ]
        shown = (await call(tmp, "enroll-token", "list")).out
        assert f"used by {used.body['agent_id']}" in shown
        assert "good" in shown and spare not in shown

        revoked = await call(tmp, "enroll-token", "revoke", rows[1]["id"][:6])
        assert (revoked.code, revoked.out) == (0, f"revoked {rows[1]['id']}\n")
        refused = await _enrolls(b, b.machine("other"), spare)
        assert (refused.status, refused.error.code) == (403, "enroll.refused")
        assert "revoked" in (await call(tmp, "enroll-token", "list")).out
        whole = await call(tmp, "enroll-token", "revoke", spare)
        assert (whole.code, spare in whole.err) == (9, False)
        nothing = await call(tmp, "enroll-token", "revoke", "zzzzzz")
        assert (nothing.code, "[enroll.token_not_found]" in nothing.err) == (8, True)


async def test_the_same_key_may_enrol_again_and_a_new_one_only_after_the_old_was_removed(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent("lab")
        assert (await _enrolls(b, agent)).body["agent_id"] == agent.id
        anew = b.machine("lab")
        refused = await _enrolls(b, anew)
        assert (refused.status, refused.error.code) == (409, "enroll.name_taken")
        assert (await call(tmp, "agents", "remove", "lab")).code == 0
        assert await agent.refusal() == "link.refused"
        assert (await _enrolls(b, anew)).body["agent_id"] == anew.id
        await anew.link()
        again = b.machine("lab-2")
        again.key, again.id = agent.key, agent.id
        assert (await _enrolls(b, again)).status == 200, "it was forgotten, not revoked"


async def test_an_agent_that_was_revoked_is_out_at_once_and_stays_out(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent, client = await b.agent("lab"), b.client()
        grant = await b.running(client, agent)
        revoked = await call(tmp, "agents", "revoke", "lab", "--reason", "stolen")
        assert revoked.code == 0, revoked.err
        assert await agent.refusal() == "agent.revoked"
        job = await client.job(grant.job_id)
        assert (job["state"], job["error"]["code"]) == ("failed", "agent.gone")

        await agent.send_hello()
        assert await agent.refusal() == "agent.revoked"
        refused = await _enrolls(b, agent)
        assert (refused.status, refused.error.code) == (403, "agent.revoked")
        assert "stolen" in refused.error.message
        (row,) = (await client.ask("GET", "/agents")).body["agents"]
        assert (row["state"], row["reason"]) == ("revoked", "stolen")
        waits = await client.request()
        assert [reason["code"] for reason in waits.body["reasons"]] == ["agent.revoked"]
        assert "revoked: stolen" in (await call(tmp, "list-agents")).out

        assert (await call(tmp, "agents", "remove", "lab")).code == 0
        assert (await _enrolls(b, agent)).status == 200
        await agent.link()


async def test_a_stranger_does_not_learn_that_an_agent_was_revoked(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent("lab")
        await b.served.control.membership.revoke("lab", reason="stolen")
        stranger = b.machine("lab")
        stranger.id = agent.id  # the id is no secret, the key is
        await stranger.send_hello(public_key=b64(public_bytes(agent.key)))
        assert await stranger.refusal() == "link.refused"


async def test_a_token_is_not_used_up_by_an_agent_that_was_revoked(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent("lab")
        await b.served.control.membership.revoke("lab", reason="")
        token = (await b.served.control.keyring.make_token(ttl_s=60, name=None)).token
        assert (await _enrolls(b, agent, token)).error.code == "agent.revoked"
        assert (await _enrolls(b, b.machine("other"), token)).status == 200


async def test_the_link_is_closed_on_whichever_replica_it_is(tmp: Path, database_url: str) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent = await b.agent("lab")
        control = b.served.control
        async with control.database.write() as conn:  # as another replica does it
            await agents.revoke(conn, agent.id, "elsewhere", now_s=0.0)
        assert await agent.refusal() == "agent.revoked"


async def test_what_operators_and_machines_did_is_audited(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        operator = await b.client_of(Role.OPERATOR)
        key = (await operator.ask("POST", "/services/keys", {"role": "viewer"})).body
        await operator.ask("DELETE", f"/services/keys/{key['id']}")
        token = (await operator.ask("POST", "/services/enroll-tokens", {})).body
        agent = b.machine("lab")
        await agent.enroll(token["token"])
        await operator.ask("DELETE", f"/services/enroll-tokens/{token['id']}")
        await operator.ask("POST", f"/services/agents/{agent.id}/revoke", {"reason": "stolen"})
        await operator.ask("DELETE", f"/services/agents/{agent.id}")
        acts = [act for act in await _acts(b) if act["source"] is not None]
        assert [act["what"] for act in acts] == [
            "key.created",
            "key.revoked",
            "token.created",
            "agent.enrolled",
            "token.revoked",
            "agent.revoked",
            "agent.removed",
        ]
        me = (await operator.ask("GET", "/whoami")).body["identity"]
        assert {act["who"] for act in acts} == {me, agent.id}
        assert {act["source"] for act in acts} == {"127.0.0.1"}
        assert key["key"].rsplit("_", 1)[1] not in str(acts)
        assert token["token"].rsplit("_", 1)[1] not in str(acts)


async def test_a_signature_by_another_key_enrols_nobody(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        machine = b.machine("lab")
        request = machine.enroll_request().model_dump(mode="json")
        forged = request | {"public_key": b64(public_bytes(Ed25519PrivateKey.generate()))}
        answer = await b.client(None).ask("POST", "/agents/enroll", forged)
        assert (answer.status, answer.error.code) == (403, "enroll.refused")
