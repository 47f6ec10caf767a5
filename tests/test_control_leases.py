"""Board leases: taken, waited for, renewed, released, kicked, expired; what jobs see of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aegis_control.store import boards, jobs, leases
from aegis_control.store.database import Database
from aegis_control.store.tables import audit, board_leases
from aegis_protocol.actions import Role
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.control_link import BoardsChanged, JobMoved, JobOffer, LeaseRevoke, Status
from aegis_protocol.failures.board import BoardBusy
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.http_api.leases import LeaseWish
from aegis_protocol.states import BoardState, JobState, LeaseState
from control_fixtures import FINGERPRINT, Answered, Bench, Client, FakeAgent, bench, board
from databases import database_kind, database_url, postgres
from sqlalchemy import select
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores

WISH = LeaseWish(board=BoardWish(id="p4"))
REQUEST = GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",))
P4: dict[str, Any] = {"boards": [{"id": "p4"}]}


# The store.


async def queued(conn: Any, lease_id: str, identity: str) -> leases.LeaseRecord:
    return await leases.create(
        conn, lease_id, identity, WISH, {}, for_s=60, note="", now_s=1, until_s=9
    )


async def test_every_holding_by_lease_or_job_has_a_higher_fencing_number(database_url: str) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        seen = []
        for turn in range(3):
            lease = await queued(conn, f"l{turn}", "ann")
            held = await leases.give(conn, lease, "a", "p4", now_s=2)
            assert held is not None and held.state is LeaseState.HELD and held.expires_at == 62
            seen.append(held.fence)
            seen += (await boards.hold(conn, "a", ["p4"], f"j{turn}", "ann")).values()
            await boards.release(conn, f"j{turn}", now_s=3)
            assert await leases.end(conn, lease.id, "released", now_s=4) is not None
        assert seen == [1, 2, 3, 4, 5, 6]


async def test_a_leased_board_goes_to_its_holders_jobs_alone(database_url: str) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            await leases.give(conn, await queued(conn, "l", "ann"), "a", "p4", now_s=2)
        with pytest.raises(BoardBusy):
            async with database.write() as conn:
                await boards.hold(conn, "a", ["p4"], "j1", "bob")
        async with database.write() as conn:
            await boards.hold(conn, "a", ["p4"], "j2", "ann")
            found = await boards.holdings(conn)
            assert found.jobs == {("a", "p4"): "j2"}
            assert found.leases["a", "p4"].identity == "ann"
            # and a second lease finds it taken, whoever asks
            assert (
                await leases.give(conn, await queued(conn, "m", "ann"), "a", "p4", now_s=2) is None
            )


async def test_a_lease_takes_a_board_from_under_its_own_identitys_job_only(
    database_url: str,
) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        await jobs.create(conn, "j", "ann", REQUEST, {}, now_s=1)
        await boards.hold(conn, "a", ["p4"], "j", "ann")
        bobs, anns = await queued(conn, "l", "bob"), await queued(conn, "m", "ann")
        assert await leases.give(conn, bobs, "a", "p4", now_s=2) is None
        held = await leases.give(conn, anns, "a", "p4", now_s=2)
        assert held is not None and held.fence == 2


async def test_of_many_who_want_one_board_at_once_one_gets_it(database_url: str) -> None:
    async with Database.open(database_url) as database:
        async with database.write() as conn:
            wanted = [await queued(conn, f"l{n}", f"i{n}") for n in range(8)]

        async def give(lease: leases.LeaseRecord) -> bool:
            async with database.write() as conn:
                return await leases.give(conn, lease, "a", "p4", now_s=2) is not None

        assert sum(await asyncio.gather(*map(give, wanted))) == 1


async def test_a_voided_holding_is_told_until_its_job_gave_the_board_back(
    database_url: str,
) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        assert await boards.kick(conn, "a", "p4", force=False) is None
        await boards.hold(conn, "a", ["p4"], "j", "ann")
        assert await boards.kick(conn, "a", "p4", force=True) is not None
        (told,) = await boards.kicked(conn, "a")
        assert (told.board_id, told.fence, told.force) == ("p4", 1, True)
        await boards.release(conn, "j", now_s=3)
        assert await boards.kicked(conn, "a") == ()
        await boards.hold(conn, "a", ["p4"], "k", "bob")
        assert await boards.kicked(conn, "a") == ()


# Over HTTP.


async def take(client: Client, **fields: Any) -> Answered:
    return await client.ask("POST", "/leases", {"board": {"id": "p4"}} | fields)


async def shown(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.ask("GET", "/leases")).body["leases"]
    return found


async def lease_in(client: Client, lease_id: str, state: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            found: dict[str, Any] = (await client.ask("GET", f"/leases/{lease_id}")).body
            if found["state"] == state:
                return found
            await asyncio.sleep(0.02)


async def stand(b: Bench) -> tuple[Client, Client, FakeAgent]:
    """Two flashers and an agent with a board."""
    agent = await b.agent(boards=(board("p4"),))
    return await b.client_of(Role.FLASHER), await b.client_of(Role.FLASHER), agent


async def test_a_leased_board_is_shown_and_others_wait_with_the_time_in_the_reason(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        ann, bob, agent = await stand(b)
        answer = await take(ann, for_secs=600, note="bisecting")
        assert answer.status == 201
        lease = answer.body
        assert (lease["state"], lease["board_id"], lease["agent_name"]) == ("held", "p4", "bench")
        assert lease["fence"] == 1 and lease["expires_at"] == pytest.approx(time.time() + 600, 5)
        (row,) = (await bob.ask("GET", "/boards")).body["boards"]
        assert (row["leased_by"], row["leased_until"]) == ("another", lease["expires_at"])
        (seen,) = await shown(bob)
        assert (seen["holder"], seen["note"]) == ("another", "")
        waits = await bob.request(**P4)
        until_text = time.strftime("%H:%M", time.gmtime(lease["expires_at"]))
        assert waits.status == 202
        assert [(r["code"], r["detail"]) for r in waits.body["reasons"]] == [
            ("board.leased", f"board p4 is leased until {until_text} UTC")
        ]
        grant = await ann.granted(**P4)
        assert [one.id for one in grant.boards] == ["p4"]
        job = await ann.job(grant.job_id)
        assert job["boards"] == ["p4"]
        assert agent.id == job["agent_id"]


async def test_a_lease_waits_in_its_turn_and_gets_the_board_when_it_is_released(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        ann, bob, _ = await stand(b)
        cyd = await b.client_of(Role.FLASHER)
        held = (await take(ann)).body
        second, third = await take(bob, wait_secs=600), await take(cyd, wait_secs=600)
        assert (second.status, third.status) == (202, 202)
        assert (second.body["position"], third.body["position"]) == (0, 1)
        assert third.body["reasons"][0]["code"] == "board.leased"
        refused = await take(cyd)
        assert (refused.status, refused.error.code) == (409, "board.not_free")
        assert refused.error.facts["reasons"][0]["code"] == "board.leased"
        ended = await ann.ask("DELETE", f"/leases/{held['id']}")
        assert (ended.status, ended.body["state"], ended.body["end"]) == (200, "ended", "released")
        given = await lease_in(bob, second.body["id"], "held")
        assert given["fence"] > held["fence"]
        assert (await lease_in(cyd, third.body["id"], "queued"))["position"] == 0
        again = await ann.ask("DELETE", f"/leases/{held['id']}")
        assert (again.status, again.error.code) == (409, "lease.over")


async def test_a_job_that_waits_comes_after_the_leases_that_wait(tmp: Path) -> None:
    async with bench(tmp) as b:
        ann, bob, _ = await stand(b)
        cyd = await b.client_of(Role.FLASHER)
        held = (await take(ann)).body
        waits = await bob.request(**P4)
        second = await take(cyd, wait_secs=600)
        await ann.ask("DELETE", f"/leases/{held['id']}")
        await lease_in(cyd, second.body["id"], "held")
        assert (await bob.job(waits.body["job_id"]))["state"] == "pending"
        await cyd.ask("DELETE", f"/leases/{second.body['id']}")
        await bob.until_state(waits.body["job_id"], "assigned")


async def test_a_lease_ends_with_its_time_and_may_be_renewed(tmp: Path) -> None:
    async with bench(tmp) as b:
        ann, bob, _ = await stand(b)
        short = (await take(ann, for_secs=1)).body
        renewed = await ann.ask("POST", f"/leases/{short['id']}/renew", {"for_secs": 600})
        assert renewed.status == 200
        assert renewed.body["expires_at"] > short["expires_at"] + 500
        await ann.ask("POST", f"/leases/{short['id']}/renew", {"for_secs": 1})
        assert (await lease_in(ann, short["id"], "ended"))["end"] == "expired"
        over = await ann.ask("POST", f"/leases/{short['id']}/renew", {"for_secs": 5})
        assert (over.status, over.error.code) == (409, "lease.over")
        assert (await take(bob)).status == 201
        waited = await take(ann, wait_secs=1)
        assert (await lease_in(ann, waited.body["id"], "ended"))["end"] == "expired"


async def test_a_lease_that_others_wait_for_is_not_renewed_for_ever(tmp: Path) -> None:
    async with bench(tmp, lease_max_s=600) as b:
        ann, bob, _ = await stand(b)
        too_long = await take(ann, for_secs=601)
        assert (too_long.status, too_long.error.code) == (400, "lease.too_long")
        lease = (await take(ann, for_secs=500)).body
        renew = f"/leases/{lease['id']}/renew"
        async with b.served.control.database.write() as conn:
            table = board_leases
            await conn.execute(table.update().values(held_at=time.time() - 400))
        assert (await ann.ask("POST", renew, {"for_secs": 500})).status == 200
        assert (await take(bob, wait_secs=60, for_secs=60)).status == 202
        refused = await ann.ask("POST", renew, {"for_secs": 500})
        assert (refused.status, refused.error.code) == (400, "lease.too_long")
        assert 150 < refused.error.facts["most_secs"] <= 200


async def test_a_lease_that_nobody_uses_ends_by_itself(tmp: Path) -> None:
    async with bench(tmp, lease_idle_s=1.5) as b:
        ann, _, agent = await stand(b)
        used = (await take(ann)).body
        grant = await ann.granted(**P4)
        await ann.offer(grant)
        await agent.accept(await agent.next(JobOffer))
        await ann.until_state(grant.job_id, "running")
        await b.served.control.leasing.look()
        look = asyncio.get_running_loop().time() + 2
        while asyncio.get_running_loop().time() < look:  # longer than the time without a session
            assert (await lease_in(ann, used["id"], "held"))["end"] is None
        await agent.send(JobMoved(job_id=grant.job_id, state=JobState.SUCCEEDED))
        await ann.until_state(grant.job_id, "succeeded")
        assert (await lease_in(ann, used["id"], "ended"))["end"] == "idle"


async def test_a_board_that_is_away_is_allotted_to_nobody(tmp: Path) -> None:
    async with bench(tmp) as b:
        ann, _, agent = await stand(b)
        gone = Board(id="p4", chip="esp32p4", state=BoardState.GONE)
        await agent.send(BoardsChanged(boards=(gone,)))
        link = b.served.control.links.find(agent.id)
        assert link is not None
        await until(lambda: link.boards == (gone,))
        refused = await take(ann)
        assert refused.error.facts["reasons"][0]["code"] == "board.gone"
        waiting = await take(ann, wait_secs=60)
        assert waiting.status == 202
        await agent.send(BoardsChanged(boards=(board("p4"),)))
        await lease_in(ann, waiting.body["id"], "held")
        await ann.ask("DELETE", f"/leases/{waiting.body['id']}")
        await agent.send(Status(paused="disk 96 %"))
        await until(lambda: link.paused is not None)
        assert (await take(ann)).error.facts["reasons"][0]["code"] == "agent.paused"
        await agent.leave()
        async with asyncio.timeout(5):
            while (await take(ann)).error.facts["reasons"][0]["code"] != "agent.disconnected":
                await asyncio.sleep(0.02)


async def test_a_kick_voids_the_holders_job_and_is_told_again_until_it_is_done(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        ann, bob, agent = await stand(b)
        operator = await b.client_of(Role.OPERATOR)
        lease = (await take(ann)).body
        grant = await b.running(ann, agent, **P4)
        (seen,) = await shown(operator)
        assert seen["holder"] != "another"
        refused = await bob.ask("DELETE", f"/leases/{lease['id']}")
        assert (refused.status, refused.error.code) == (404, "lease.not_found")
        kicked = await operator.ask("DELETE", f"/leases/{lease['id']}?force=1")
        assert (kicked.status, kicked.body["end"]) == (200, "kicked")
        void = await agent.next(LeaseRevoke)
        assert (void.board_id, void.force) == ("p4", True)
        assert void.fence == 2  # the lease was the first, the job the second holding
        assert (await take(bob)).error.facts["reasons"][0]["code"] == "board.held"
        await agent.leave()
        async with asyncio.timeout(5):
            while b.served.control.links.find(agent.id) is not None:
                await asyncio.sleep(0.01)
        held = {"job_id": grant.job_id, "state": "running", "attempt": 1, "boards": {"p4": 2}}
        challenge = await agent.open()
        await agent.send(agent.hello(challenge, jobs=(held,)))
        again = [await agent.receive(), await agent.receive()]
        assert [frame.type for frame in again if frame] == ["welcome", "lease.revoke"]
        await agent.send(JobMoved(job_id=grant.job_id, state=JobState.CANCELED))
        await ann.until_state(grant.job_id, "canceled")
        assert (await take(bob)).body["fence"] == 3
        async with b.served.control.database.read() as conn:
            acts = (await conn.execute(select(audit).where(audit.c.what.like("lease.%")))).all()
        assert [act.what for act in acts] == ["lease.taken", "lease.kicked", "lease.taken"]
        assert acts[1].board_id == "p4" and acts[1].who != acts[0].who


async def test_an_expired_lease_leaves_its_job_the_board_unless_others_wait(tmp: Path) -> None:
    async with bench(tmp) as b:
        ann, bob, agent = await stand(b)
        lease = (await take(ann, for_secs=1)).body
        grant = await b.running(ann, agent, **P4)
        await lease_in(ann, lease["id"], "ended")
        assert (await ann.job(grant.job_id))["state"] == "running"
        lease = (await take(ann, for_secs=1)).body  # under its own job
        assert lease["state"] == "held"
        assert (await take(bob, wait_secs=60)).status == 202
        void = await agent.next(LeaseRevoke)
        assert (void.board_id, void.force) == ("p4", False)


async def test_keys_and_roles_limit_who_may_lease_what(tmp: Path) -> None:
    async with bench(tmp) as b:
        await stand(b)
        viewer = await b.client_of(Role.VIEWER)
        assert (await take(viewer)).error.code == "role.insufficient"
        limited = await b.client_of(Role.FLASHER, boards=("other",))
        assert (await take(limited)).error.code == "board.not_allowed"
        elsewhere = await b.client_of(Role.FLASHER, agents=("attic",))
        refused = await take(elsewhere)
        assert refused.error.facts["reasons"][0]["code"] == "agent.not_allowed"
        flasher = await b.client_of(Role.FLASHER)
        missing = await take(flasher, board={"id": "nothing"})
        assert (missing.status, missing.error.code) == (404, "board.not_found")
        by_chip = await take(flasher, board={"chip": "esp32p4"}, agent_id="bench")
        assert by_chip.body["board_id"] == "p4"
        for bad in ("yes", "", "2"):
            answer = await flasher.ask("DELETE", f"/leases/{by_chip.body['id']}?force={bad}")
            assert answer.status == 400
        assert (await flasher.ask("GET", "/leases/nope")).error.code == "lease.not_found"


async def test_leases_and_their_queue_outlive_control(tmp: Path) -> None:
    async with bench(tmp) as b:
        ann, bob, agent = await stand(b)
        held, waiting = await take(ann), await take(bob, wait_secs=600)
        await agent.leave()
    async with bench(tmp) as b:
        ann, bob = (Client(b.session, b.base_url, one.key) for one in (ann, bob))
        agent.base_url, agent._session = b.base_url, b.session
        with suppress(AssertionError):
            await agent.link()
        assert (await lease_in(ann, held.body["id"], "held"))["fence"] == held.body["fence"]
        assert (await take(bob)).error.code == "board.not_free"
        await ann.ask("DELETE", f"/leases/{held.body['id']}")
        await lease_in(bob, waiting.body["id"], "held")
