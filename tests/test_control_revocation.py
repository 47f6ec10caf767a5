"""What control does about a revocation: tells the agent, wherever its link is, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aegis_control.store import agents, revocations
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from aegis_protocol.control_link import HeldJob, JobRevoke, KeyRevoke, Revocations, Revoked
from aegis_protocol.states import JobState
from control_fixtures import bench, key_of
from control_runs import WITHIN_S, call
from databases import database_kind, database_url, postgres, postgres_url
from structlog.testing import capture_logs
from test_control_replicas import replicas_of, sees

__all__ = ["database_kind", "database_url", "postgres", "postgres_url"]

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


async def test_an_agent_at_another_replica_is_told_and_its_word_is_known_everywhere(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, c):
        agent = await a.agent()
        await sees(c, agent)
        client = a.client(await key_of(a.served, Role.FLASHER))
        grant = await a.running(client, agent)
        await c.served.control.revoking.job(grant.job_id, "not yours")
        told = await agent.next(Revocations)
        assert told.revocations == (JobRevoke(job_id=grant.job_id, reason="not yours"),)
        await agent.send(Revoked(through=told.through))
        (known,) = await c.served.control.revoking.settled("job", grant.job_id, within_s=20)
        assert (known.done, known.agent_name) == (True, "bench")
        refused = await c.client(client.key).offer(grant)
        assert (refused.status, refused.error.code) == (403, "grant.revoked")


async def test_a_link_that_returns_is_told_first_and_a_cursor_spares_what_is_done(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        key = await key_of(b.served, Role.FLASHER)
        key_id = key.split("_")[2]
        grant = await b.running(b.client(key), agent)
        held = HeldJob(job_id=grant.job_id, state=JobState.RUNNING)
        await agent.leave()
        await b.served.control.revoking.job(grant.job_id, "")
        await b.served.control.revoking.key(key_id, "lost")
        welcome = await agent.link(held)
        assert welcome.revocations == (
            JobRevoke(job_id=grant.job_id),
            KeyRevoke(identity=key_id, reason="lost"),
        )
        half = welcome.revoked_through - 1
        again = await agent.link(held, revoked_through=half)
        assert again.revocations == (KeyRevoke(identity=key_id, reason="lost"),)
        # A cursor of another store: better twice than never.
        strange = await agent.link(held, revoked_through=10_000)
        assert len(strange.revocations) == 2
        assert (await agent.link(held, revoked_through=half + 1)).revocations == ()


async def test_more_than_a_frame_holds_is_told_frame_by_frame(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "MOST", 2)
    async with bench(tmp / "s") as b:
        agent = await b.agent(slots=5, cpu_cores=5.0)
        grants = [await b.running(b.client(), agent) for _ in range(5)]
        await agent.leave()
        for grant in grants:
            await b.served.control.revoking.job(grant.job_id, "")
        held = [HeldJob(job_id=grant.job_id, state=JobState.RUNNING) for grant in grants]
        welcome = await agent.link(*held)
        seen, through = list(welcome.revocations), welcome.revoked_through
        while len(seen) < 5:
            await agent.send(Revoked(through=through))
            more = await agent.next(Revocations)
            if more.through > through:  # the one from before our word may have crossed it
                seen += more.revocations
                through = more.through
        told = [one.job_id for one in seen if isinstance(one, JobRevoke)]
        assert told == [grant.job_id for grant in grants]


async def test_a_job_is_shown_with_what_of_it_was_taken_back_and_where_that_is_pending(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent = await b.agent()
        builder = await b.client_of(Role.BUILDER)
        grant, other = await b.running(builder, agent), await b.running(builder, agent)
        jti = b.served.control.issuer.verify(grant.grant).jti
        await agent.leave()
        before = (await call(tmp, "show-job", grant.job_id, "--json")).data
        assert (before["id"], before["revocations"]) == (grant.job_id, [])
        assert (await call(tmp, "revoke", "grant", jti)).code == 0
        assert (await call(tmp, "revoke", "job", grant.job_id)).code == 0
        shown = " ".join((await call(tmp, "show-job", grant.job_id)).out.split())
        assert f"grant {jti} revoked" in shown
        assert shown.count("pending at bench: told first when its link is back") == 2
        listed = " ".join((await call(tmp, "list-sessions")).out.split())
        assert "revoked, pending at the agent" in listed
        assert "revoked" not in (await call(tmp, "show-job", other.job_id)).out
        assert builder.key is not None
        assert (await call(tmp, "revoke", "key", builder.key.split("_")[2])).code == 0
        assert "pending at bench" in (await call(tmp, "show-job", other.job_id)).out

        jobs = [HeldJob(job_id=one.job_id, state=JobState.RUNNING) for one in (grant, other)]
        welcome = await agent.link(*jobs)
        await agent.send(Revoked(through=welcome.revoked_through))
        async with asyncio.timeout(WITHIN_S):
            states: set[str] = {"pending"}
            while "pending" in states:
                found = (await call(tmp, "show-job", grant.job_id, "--json")).data
                states = {row["state"] for row in found["revocations"]}
        assert [row["kind"] for row in found["revocations"]] == ["key", "job", "grant"]
        assert "done at bench" in (await call(tmp, "show-job", other.job_id)).out


async def test_an_operator_reads_where_it_is_pending(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        grant = await b.running(b.client(), agent)
        await agent.leave()
        told = await call(tmp, "revoke", "job", grant.job_id, "--reason", "wrong board")
        assert (told.code, told.err) == (0, "")
        assert "pending at bench" in told.out
        listed = await call(tmp, "revoke", "list")
        for word in (grant.job_id, "bench", "pending", "local", "wrong board"):
            assert word in listed.out
        unknown = await call(tmp, "revoke", "grant", "no-such-grant", "--json")
        assert unknown.code != 0
        assert "grant.not_found" in unknown.err
        waits = await b.client().request(target="esp32c6")
        none = await call(tmp, "revoke", "job", waits.body["job_id"])
        assert "no agent has anything of it" in none.out
        assert (await b.client().job(waits.body["job_id"]))["state"] == "canceled"


@pytest.mark.parametrize("agent_count", [2, 40])
async def test_of_the_agents_that_are_here_those_behind_are_found(
    tmp: Path, agent_count: int
) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        names = [f"ag-{number}" for number in range(agent_count)]
        async with database.write() as conn:
            for name in (*names, "elsewhere"):
                await agents.enroll(conn, name, name, b"k" * 32, now_s=1)
            for name in (names[0], names[1], "elsewhere"):
                through = await revocations.add(
                    conn,
                    name,
                    KeyRevoke(identity="k"),
                    kind="key",
                    what="k",
                    job_id=None,
                    by="mcp",
                    now_s=1,
                )
                if name == names[0]:
                    await revocations.done(conn, name, through)
        async with database.read() as conn:
            assert await revocations.behind(conn, names) == {names[1]: 0}
