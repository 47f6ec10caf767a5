"""What an operator sees of a control, and does with its store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from aegis_control import cli
from aegis_control.metrics import Metrics
from aegis_control.slow import KEPT, SlowOperations, doing
from aegis_control.store import jobs, keys
from aegis_control.store.database import Database
from aegis_control.store.deletion import delete_store
from aegis_protocol.actions import Role
from control_fixtures import bench, board
from control_runs import WITHIN_S, call, run
from databases import database_kind, database_url, postgres
from structlog.testing import capture_logs
from typer.main import get_command
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.mark.sqlite
async def test_status_tells_of_the_process_the_store_the_agents_and_the_jobs(tmp: Path) -> None:
    async with bench(tmp / "s", slow_ms=600_000) as b:
        agent = await b.agent("lab", boards=(board("p4-1"),))
        client = b.client()
        await b.running(client, agent, boards=[{"id": "p4-1"}])
        await client.request(target="esp32p4", agent_id="lab", boards=[{"id": "p4-1"}])
        shown = await call(tmp, "status")
        data = (await call(tmp, "status", "--json", "--metrics")).data
    assert shown.code == 0
    for word in (
        f"{os.getpid()}, up since",
        b.base_url,
        "sqlite, tables of revision",
        "1 online",
        "1 pending, 1 running",
        "none over 600000 ms",
    ):
        assert word in shown.out, shown.out
    assert data["pid"] == os.getpid()
    assert data["agents"] == {"online": 1}
    assert (data["jobs"]["running"], data["jobs"]["pending"], data["links"]) == (1, 1, 1)
    assert data["resident_bytes"] > 10_000_000
    (here,) = data["replicas"]
    assert (here["alive"], here["here"], data["skews_s"]) == (True, True, {})
    assert "aegis_agents_online 1.0" in data["metrics"]


async def test_a_clock_that_is_off_is_shown_as_long_as_its_agent_is_linked(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine("lab")
        await agent.enroll()
        await agent.link(clock=time.time() - 30)
        linked = (await call(tmp, "status", "--json")).data["skews_s"]
        doctor = (await call(tmp, "doctor", "--json", AEGIS_LISTEN="127.0.0.1:0")).data
        await agent.leave()
        await until(lambda: not b.served.control.links.all())
        left = (await call(tmp, "status", "--json")).data["skews_s"]
    assert -40 < linked[agent.id] < -25
    (clocks,) = [one for one in doctor["checks"] if one["name"] == "agent_clocks"]
    assert (clocks["status"], "lab by -" in clocks["detail"]) == ("warning", True)
    assert left == {}


async def test_status_is_told_again_and_again_until_ctrl_c(tmp: Path) -> None:
    async with bench(tmp / "s"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aegis_control", "status", "--watch", "--json"),
            env={**os.environ, "AEGIS_STATE_DIR": str(tmp / "s"), "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            first, second = [json.loads(await process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            await process.wait()
    assert second["time"] > first["time"]


async def test_status_of_a_control_that_does_not_run_says_so(tmp: Path) -> None:
    ended = await call(tmp, "status")
    assert (ended.code, "no control runs" in ended.err) == (6, True)


async def test_what_is_slow_is_counted_logged_and_shown(tmp: Path) -> None:
    async with bench(tmp / "s", slow_ms=1) as b:
        await b.client().ask("GET", "/agents")
        shown = await call(tmp, "status")
        data = (await call(tmp, "status", "--json")).data
        metrics = await b.client(None).ask("GET", "/metrics")
    assert data["slow"]["request"] >= 1
    assert {one["what"] for one in data["slow_recent"]} & {"GET /agents", "GET /services/status"}
    assert "SLOW" in shown.out and "TOOK" in shown.out
    assert 'aegis_slow_operations_total{kind="request"}' in metrics.body


def test_only_what_is_over_the_limit_is_slow_and_only_the_last_ones_are_kept() -> None:
    slow = SlowOperations(0.5, Metrics())
    with capture_logs() as logs, doing("GET /x"):
        slow.note("read", 0.49)
        for number in range(KEPT + 5):
            slow.note("write", 1 + number)
    assert slow.counts == {"write": KEPT + 5}
    assert len(slow.recent) == KEPT
    assert slow.recent[-1].took_s == KEPT + 5
    assert (logs[0]["event"], logs[0]["what"], logs[0]["took_ms"]) == (
        "operation.was_slow",
        "GET /x",
        1000,
    )


async def test_a_transaction_is_timed_with_the_wait_for_its_turn(database_url: str) -> None:
    async with Database.open(database_url) as database:
        told: list[tuple[str, float]] = []
        database.timed = lambda kind, took_s: told.append((kind, took_s))
        async with database.read() as conn:
            await keys.count(conn)
        async with database.write():
            await asyncio.sleep(0.02)
    assert [kind for kind, _ in told] == ["read", "write"]
    assert told[1][1] >= 0.02


async def test_jobs_are_listed_by_state_with_the_reason_and_shown_one_by_one(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        assert "no job" in (await call(tmp, "list-jobs")).out
        agent = await b.agent("lab", boards=(board("p4-1"),))
        client = b.client()
        grant = await b.running(client, agent, target="esp32p4", boards=[{"id": "p4-1"}])
        waits = (await client.request(target="esp32s3")).body["job_id"]
        listed = await call(tmp, "list-jobs")
        pending = (await call(tmp, "list-jobs", "--state", "pending", "--json")).data
        shown = await call(tmp, "show-job", waits)
        running = await call(tmp, "show-job", grant.job_id)
        missing = await call(tmp, "show-job", "no-such-job")
    for word in (grant.job_id, waits, "running", "pending", "lab", "p4-1", "esp32s3"):
        assert word in listed.out
    assert [job["id"] for job in pending["jobs"]] == [waits]
    assert "target.missing" in shown.out and "no toolchain for esp32s3" in shown.out
    assert f"lab ({agent.id})" in running.out
    assert missing.code == 8


async def test_boards_are_listed_with_who_has_them(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        assert "No agent has a board" in (await call(tmp, "list-boards")).out
        agent = await b.agent("lab", boards=(board("p4-1", rack="a"), board("c3-1", "esp32c3")))
        job = await b.running(b.client(), agent, boards=[{"id": "p4-1"}])
        flasher = await b.client_of(Role.FLASHER)
        await flasher.ask("POST", "/leases", {"board": {"id": "c3-1"}})
        shown = await call(tmp, "list-boards")
        data = (await call(tmp, "list-boards", "--json")).data
    for word in ("p4-1", "esp32p4", "lab (online)", "held", "rack=a", "c3-1", "free"):
        assert word in shown.out
    rows = {row["board"]["id"]: row for row in data["boards"]}
    assert rows.keys() == {"p4-1", "c3-1"}
    assert rows["p4-1"]["holder"] == job.job_id and rows["p4-1"]["leased_by"] is None
    assert flasher.key is not None and rows["c3-1"]["leased_by"] in flasher.key
    for word in (job.job_id, "leased by", rows["c3-1"]["leased_by"]):
        assert word in " ".join(shown.out.split())


async def test_migrate_makes_the_tables_and_says_what_is_missing_before(tmp: Path) -> None:
    before = await call(tmp, "migrate", "--check")
    assert (before.code, "from nothing" in before.out) == (1, True)
    done = await call(tmp, "migrate", "--json")
    assert (done.code, done.data["before"], done.data["done"]) == (0, None, True)
    again = await call(tmp, "migrate")
    assert (again.code, "up to date" in again.out) == (0, True)
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    newer = await call(tmp, "migrate")
    assert (newer.code, "[store.newer_schema]" in newer.err) == (4, True)


@pytest.mark.sqlite
async def test_reset_deletes_all_that_is_controls_but_only_when_told_and_not_in_use(
    tmp: Path,
) -> None:
    async with bench(tmp / "s"):
        used = await call(tmp, "reset", "--yes-delete-everything")
        assert (used.code, "[control.state_dir_busy]" in used.err) == (4, True)
    (tmp / "s" / "my-notes.txt").write_text("not control's")
    unsure = await call(tmp, "reset")
    assert (unsure.code, "--yes-delete-everything" in unsure.err) == (9, True)
    assert (tmp / "s" / "issuer.pem").exists()
    done = await call(tmp, "reset", "--yes-delete-everything", "--json")
    assert done.code == 0
    left = {path.name for path in (tmp / "s").iterdir()}
    assert left == {"my-notes.txt", "control.lock"}
    assert str(tmp / "s" / "control.db") in done.data["deleted"]
    nothing = await call(tmp, "reset", "--yes-delete-everything")
    assert (nothing.code, "nothing to delete" in nothing.out) == (0, True)


async def test_a_deleted_store_is_empty_and_can_be_made_again(database_url: str) -> None:
    async with Database.open(database_url) as database, database.write() as conn:
        await keys.add(conn, "k", b"d", Role.VIEWER, name="", limits={}, now_s=1, expires_at=None)
    assert len(await delete_store(database_url)) >= 1
    async with Database.open(database_url) as database, database.read() as conn:
        assert await keys.count(conn) == 0
        assert await jobs.open_ones(conn, None) == {}


async def test_completion_knows_the_commands(tmp: Path) -> None:
    ended = await run(
        tmp,
        _AEGIS_CONTROL_COMPLETE="complete_bash",
        COMP_WORDS="aegis-control list-",
        COMP_CWORD="1",
    )
    assert {"list-agents", "list-jobs", "list-boards"} <= set(ended.out.split())


def test_every_command_has_an_example_in_its_help_and_the_example_is_of_itself() -> None:
    def commands(command: object, path: str) -> Iterator[tuple[str, str]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, f"{path} {name}")
        if not hasattr(command, "commands"):
            words = (getattr(command, "help", None), getattr(command, "epilog", None))
            yield path, " ".join(" ".join(word or "" for word in words).split())

    found = dict(commands(get_command(cli.app), "aegis-control"))
    assert len(found) > 15
    assert [path for path, shown in found.items() if path not in shown] == []
