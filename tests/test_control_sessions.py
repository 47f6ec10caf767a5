"""Grants and what became of them: used or not, open or closed, and by what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aegis_protocol.actions import Role
from aegis_protocol.control_link import HeldJob, JobOffer, SessionClosed
from aegis_protocol.failures.link import PeerGone
from aegis_protocol.states import JobState
from control_fixtures import MCP, Bench, Client, FakeAgent, bench
from control_runs import call
from databases import database_kind, database_url, postgres
from structlog.testing import capture_logs
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


async def _grants(operator: Client, query: str = "") -> list[dict[str, Any]]:
    answer = await operator.ask("GET", f"/services/grants{query}")
    assert answer.status == 200, answer.body
    rows: list[dict[str, Any]] = answer.body["grants"]
    return rows


@asynccontextmanager
async def one_agent(
    tmp: Path, database_url: str
) -> AsyncIterator[tuple[Bench, FakeAgent, Client, Client]]:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent = await b.agent("lab")
        yield b, agent, b.client(), await b.client_of(Role.OPERATOR)


async def _closes(agent: FakeAgent, job_id: str, jti: str) -> None:
    error = PeerGone("The peer said nothing for 6.2 s.").body()
    await agent.send(SessionClosed(job_id=job_id, jti=jti, error=error))


async def test_a_grant_is_listed_from_its_issue_to_the_end_of_its_connection(
    tmp: Path, database_url: str
) -> None:
    async with one_agent(tmp, database_url) as (_, agent, client, operator):
        grant = await client.granted(required_channels=["espctl", "pty"])
        (row,) = await _grants(operator)
        assert (row["state"], row["identity"], row["agent_name"]) == ("unused", "mcp", "lab")
        assert (row["channels"], row["source"]) == (["espctl", "pty"], "127.0.0.1")
        assert row["job_id"] == grant.job_id and "build.read" in row["actions"]
        assert 29 < row["expires_at"] - row["issued_at"] < 31

        await client.offer(grant)
        assert (await _grants(operator))[0]["state"] == "offered"
        offer = await agent.next(JobOffer)
        assert offer.jti == row["jti"]
        await agent.accept(offer, for_s=600)
        await client.until_state(grant.job_id, "running")
        (row,) = await _grants(operator)
        assert row["state"] == "open" and row["opened_at"] >= row["offered_at"]
        (session,) = (await operator.ask("GET", "/services/sessions")).body["sessions"]
        assert (session["jti"], session["agent_name"]) == (offer.jti, "lab")
        assert 590 < session["ends_at"] - session["opened_at"] < 610
        assert (await client.ask("GET", "/health/sessions")).body["sessions"] == 1
        assert offer.jti in (await call(tmp, "list-sessions")).out

        await _closes(agent, grant.job_id, offer.jti)
        await until_closed(operator)
        (row,) = await _grants(operator)
        assert row["code"] == "link.peer_gone"
        assert (await operator.ask("GET", "/services/sessions")).body == {"sessions": []}
        assert (await client.job(grant.job_id))["state"] == "running", "the job goes on"
        shown = (await call(tmp, "list-grants", "--who", "mcp")).out
        assert "link.peer_gone" in shown and offer.jti in shown
        assert "No connection is open" in (await call(tmp, "list-sessions")).out


async def until_closed(operator: Client) -> None:
    async def all_closed() -> bool:
        return all(row["state"] == "closed" for row in await _grants(operator))

    for _ in range(500):
        if await all_closed():
            return
        await _breath()
    raise AssertionError(await _grants(operator))


async def _breath() -> None:
    await asyncio.sleep(0.01)


async def test_a_session_ends_with_its_job(tmp: Path, database_url: str) -> None:
    async with one_agent(tmp, database_url) as (b, agent, client, operator):
        grant = await b.running(client, agent)
        await client.ask("DELETE", f"/jobs/{grant.job_id}")
        (row,) = await _grants(operator)
        assert (row["state"], row["closed_at"]) == ("closed", None)
        assert (await client.ask("GET", "/health/sessions")).body["sessions"] == 0


async def test_what_a_cut_link_kept_from_control_the_next_hello_says(
    tmp: Path, database_url: str
) -> None:
    async with one_agent(tmp, database_url) as (b, agent, client, operator):
        grant = await b.running(client, agent)
        second = await client.granted(job_id=grant.job_id)
        await client.offer(second)
        offer = await agent.next(JobOffer)
        await agent.accept(offer)
        await until_open(client, 2)
        await agent.leave()
        held = HeldJob(job_id=grant.job_id, state=JobState.RUNNING, sessions=(offer.jti,))
        await agent.link(held)
        rows = {row["jti"]: row["state"] for row in await _grants(operator)}
        assert rows.pop(offer.jti) == "open"
        assert list(rows.values()) == ["closed"]


async def until_open(client: Client, count: int) -> None:
    for _ in range(500):
        if (await client.ask("GET", "/health/sessions")).body["sessions"] == count:
            return
        await _breath()
    raise AssertionError(f"never {count} sessions")


async def test_grants_are_found_by_job_identity_and_agent(tmp: Path, database_url: str) -> None:
    async with one_agent(tmp, database_url) as (b, agent, client, operator):
        other = await b.client_of(Role.BUILDER)
        mine, theirs = await client.granted(), await other.granted()
        everything = await _grants(operator)
        assert [row["job_id"] for row in everything] == [theirs.job_id, mine.job_id]
        for query, expected in (
            (f"?job={mine.job_id}", 1),
            ("?identity=mcp", 1),
            ("?agent=lab", 2),
            (f"?agent={agent.id}&identity=mcp", 1),
            ("?agent=nothing", 0),
            ("?limit=1", 1),
        ):
            assert len(await _grants(operator, query)) == expected, query
        for wrong in ("0", "many", "1001", "-1"):
            answer = await operator.ask("GET", f"/services/grants?limit={wrong}")
            assert (answer.status, answer.error.facts["field"]) == (400, "limit")


async def test_one_agent_cannot_close_anothers_session(tmp: Path, database_url: str) -> None:
    async with one_agent(tmp, database_url) as (b, agent, client, operator):
        grant = await b.running(client, agent, agent_id=agent.id)
        stranger = await b.agent("stranger")
        (row,) = await _grants(operator)
        await _closes(stranger, grant.job_id, row["jti"])
        await stranger.send(SessionClosed(job_id=grant.job_id, jti="nothing"))
        await stranger.leave()
        await until(lambda: b.served.control.links.find(stranger.id) is None)
        assert (await _grants(operator))[0]["state"] == "open"


async def test_no_grant_is_ever_in_the_store_or_the_list(tmp: Path, database_url: str) -> None:
    async with one_agent(tmp, database_url) as (_, _, client, operator):
        grant = await client.granted()
        listed = str(await _grants(operator))
    raw = b"".join(path.read_bytes() for path in tmp.glob("**/control.db*"))
    for part in grant.grant.split("."):
        assert part not in listed
        assert part.encode() not in raw
    assert MCP.encode() not in raw


@pytest.mark.parametrize("kind", ["grant", "job", "key"])
async def test_what_was_revoked_is_shown_with_each_grant_that_it_takes(
    tmp: Path, database_url: str, kind: str
) -> None:
    async with one_agent(tmp, database_url) as (b, agent, _, operator):
        client = await b.client_of(Role.BUILDER)
        granted = await b.running(client, agent)
        unused = await client.granted(job_id=granted.job_id)
        rows = {row["state"]: row for row in await _grants(operator)}
        assert set(rows) == {"open", "unused"}
        what = {
            "grant": rows["unused"]["jti"],
            "job": granted.job_id,
            "key": rows["unused"]["identity"],
        }[kind]
        body = {"kind": kind, "id": what, "reason": "enough"}
        answer = await operator.ask("POST", "/services/revocations", body)
        assert answer.status in (200, 202), answer.body
        after = {row["jti"]: row for row in await _grants(operator)}
        assert after[rows["unused"]["jti"]]["state"] == "revoked"
        taken = after[rows["open"]["jti"]]
        assert taken["state"] == "open", "the agent has not said that it is closed"
        assert (taken["revoked_at"] is not None) is (kind != "grant")
        asked = {"token": unused.grant}
        verdict = (await operator.ask("POST", "/services/verify-token", asked)).body
        assert (verdict["valid"], verdict["code"]) == (False, "grant.revoked")
