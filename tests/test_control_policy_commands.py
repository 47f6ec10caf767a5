"""The policy as an operator meets it: files, signals, commands, and what the audit keeps."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aegis_control.store.tables import audit
from aegis_protocol.actions import Role
from aegis_protocol.ids import new_id
from control_fixtures import Bench, bench, key_of
from control_runs import WITHIN_S, call, run, served
from sqlalchemy import select
from structlog.testing import capture_logs

POLICY = """
[[rules]]
name = "no-video"
roles = ["builder"]
channels = ["espctl", "source"]
targets = ["esp32p4"]
[rules.limits]
max_bandwidth_kbps = 1000
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


async def test_a_check_prints_the_decision_and_the_rule_and_makes_nothing(tmp: Path) -> None:
    async with bench(tmp / "s", policy_file=write(tmp, POLICY)) as b:
        key = await key_of(b.served, Role.BUILDER)
        key_id = key.split("_")[2]
        words = ("policy", "check", "--key", key_id, "--target", "esp32p4")
        yes = await call(tmp, *words, "--channels", "espctl,source")
        assert (yes.code, yes.err) == (0, "")
        for said in ("allowed", key_id, "policy rule no-video", "espctl, source", "kbit/s: 1000"):
            assert said in yes.out
        no = await call(tmp, *words, "--channels", "espctl,firmware", "--json")
        assert (no.code, no.data["rule"]) == (10, "policy rule no-video")
        assert no.data["error"]["code"] == "channel.not_allowed"
        supposed = await call(
            tmp, "policy", "check", "--role", "flasher", "--limit", "boards=b1", "--board", "b2"
        )
        assert (supposed.code, "limit boards" in supposed.out) == (10, True)
        assert (await b.client(key).ask("GET", "/jobs")).body == {"jobs": []}


async def test_a_whole_key_is_not_taken_on_the_command_line(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        key = await key_of(b.served, Role.BUILDER)
        refused = await call(tmp, "policy", "check", "--key", key)
        assert refused.code == 9
        assert key not in refused.out + refused.err
        unknown = await call(tmp, "policy", "check", "--key", new_id())
        assert (unknown.code, "key.not_found" in unknown.err) == (8, True)


async def test_a_file_is_checked_with_no_control_running(tmp: Path) -> None:
    good, bad = await asyncio.gather(
        run(tmp, "policy", "validate", str(write(tmp, POLICY))),
        run(tmp, "policy", "validate", str(tmp / "none.toml"), "--json"),
    )
    assert (good.code, "1 rules" in good.out) == (0, True)
    assert bad.code == 3
    assert json.loads(bad.err)["error"]["code"] == "policy.invalid"


async def test_a_hangup_reads_the_file_again_and_a_bad_one_changes_nothing(tmp: Path) -> None:
    path = write(tmp, POLICY)
    async with (
        served(tmp, AEGIS_POLICY_FILE=str(path)) as control,
        aiohttp.ClientSession() as session,
    ):

        async def health() -> Any:
            async with session.get(f"{control.base_url}/health") as answer:
                return (await answer.json())["policy"]

        async def until(expected: str) -> None:
            async with asyncio.timeout(WITHIN_S):
                while await health() != expected:
                    await asyncio.sleep(0.05)

        assert await health() == "file"
        path.write_text("[[rules]]\nnom = 1\n")
        control.process.send_signal(signal.SIGHUP)
        await until("stale")
        shown = await run(tmp, "policy", "show", "--json")
        assert "line 2" in shown.data["trouble"]["message"]
        assert [rule["name"] for rule in shown.data["rules"]] == ["no-video"]
        path.write_text(POLICY.replace("no-video", "still-none"))
        control.process.send_signal(signal.SIGHUP)
        await until("file")
        told = await run(tmp, "policy", "show")
        assert "still-none" in told.out


async def test_control_does_not_start_with_a_bad_policy(tmp: Path) -> None:
    bad = write(tmp, "[[rules]]\n")
    done = await run(tmp, "serve", "--listen", "127.0.0.1:0", AEGIS_POLICY_FILE=str(bad))
    assert (done.code, "line 1: rule 1: name" in done.err) == (3, True)


async def test_every_grant_issued_and_denied_stands_in_the_audit_with_its_rule(tmp: Path) -> None:
    async with bench(tmp / "s", policy_file=write(tmp, POLICY)) as b:
        agent = await b.agent()
        client = await b.client_of(Role.BUILDER)
        grant = await client.granted(required_channels=["espctl"], target="esp32p4")
        assert (await client.request(required_channels=["firmware"])).status == 403
        issued, denied = await acts(b, "grant.%")
        assert (issued.what, issued.decision, issued.rule) == (
            "grant.issued",
            "allowed",
            "policy rule no-video",
        )
        assert (issued.job_id, issued.agent_id) == (grant.job_id, agent.id)
        assert issued.who == denied.who != "control"
        assert (denied.what, denied.decision, denied.outcome) == (
            "grant.denied",
            "denied",
            "channel.not_allowed",
        )
        assert denied.rule == "policy rule no-video"
        assert denied.source == "127.0.0.1"


async def acts(b: Bench, like: str) -> list[Any]:
    async with b.served.control.database.read() as conn:
        rows = await conn.execute(select(audit).where(audit.c.what.like(like)).order_by(audit.c.id))
        return list(rows)
