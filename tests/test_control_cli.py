"""`aegis-control` as an operator runs it: real processes."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aegis_control.local_socket import listening
from aegis_protocol import __version__
from control_fixtures import FakeAgent, bench, board
from control_runs import WITHIN_S, call, run, served
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


async def test_an_agent_is_listed_with_nothing_to_configure(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        empty = await call(tmp, "list-agents")
        assert (empty.code, empty.err) == (0, "")
        assert "enroll-token create" in empty.out
        token = (await call(tmp, "enroll-token", "create")).out.strip()
        agent = b.machine("bench", boards=(board("p4-1"),))
        await agent.enroll(token)
        await agent.link()

        shown, data = await asyncio.gather(
            run(tmp, "list-agents"), run(tmp, "list-agents", "--json")
        )
        head, row = shown.out.splitlines()
        assert head.split("  ")[0] == "ID"
        for name in ("STATE", "VERSION", "TARGETS", "TOOLCHAINS", "SLOTS", "BOARDS", "LAST SEEN"):
            assert name in head
        for word in (
            agent.id,
            "bench",
            "online",
            "0.1.0",
            "esp32 esp32p4",
            "platformio 6.1.18",
            "2/2 free",
            "p4-1 (esp32p4)",
            "s ago",
        ):
            assert word in row
        (listed,) = data.data["agents"]
        assert (listed["id"], listed["state"], listed["slots"]) == (agent.id, "online", 2)
        assert listed["boards"][0]["id"] == "p4-1"
        assert abs(listed["last_seen"] - time.time()) < 60


async def test_keys_are_made_listed_and_revoked_by_command_and_by_url(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        made = (await call(tmp, "keys", "create", "--role", "operator", "--json")).data
        remote = ("--url", b.base_url)
        elsewhere = {"AEGIS_STATE_DIR": str(tmp / "nothing"), "AEGIS_OPERATOR_KEY": made["key"]}
        listed = await call(tmp, "keys", "list", "--json", *remote, **elsewhere)
        assert made["id"] in [row["id"] for row in listed.data["keys"]]
        (tmp / "key").write_text(made["key"])
        by_file = ("--key-file", str(tmp / "key"), *remote)
        revoked = await call(tmp, "keys", "revoke", made["id"], *by_file)
        assert revoked.code == 0
        refused = await call(tmp, "keys", "list", "--json", *remote, **elsewhere)
        assert refused.code == 7
        assert json.loads(refused.err)["error"]["code"] == "auth.key_wrong"
        assert made["key"] not in refused.err
        unnamed = await call(tmp, "keys", "list", *remote)
        assert (unnamed.code, "AEGIS_OPERATOR_KEY" in unnamed.err) == (7, True)


async def test_a_signal_ends_it_soon_and_cleanly_even_with_streams_and_links_open(
    tmp: Path,
) -> None:
    secret = "a secret that is long enough"
    environment = {"AGENT_AUTH_SECRET": secret, "MCP_AUTH_SECRET": secret, "AEGIS_LOG": "json"}
    async with served(tmp, **environment) as control, aiohttp.ClientSession() as session:
        assert control.lines[0] == f"aegis-control {__version__} listens on {control.base_url}"
        agent = FakeAgent(session, control.base_url)
        await agent.enroll(secret)
        await agent.link()
        body = {
            "peer_fingerprint": "sha-256:" + ":".join(["AB"] * 32),
            "required_channels": ["espctl"],
        }
        headers = {"X-API-Key": secret}
        async with session.post(
            f"{control.base_url}/grant/request", json=body, headers=headers
        ) as answer:
            job_id = (await answer.json())["job_id"]
        stream = await session.get(f"{control.base_url}/signaling/{job_id}/events", headers=headers)
        began = time.monotonic()
        control.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WITHIN_S):
            _, err = await control.process.communicate()
        assert control.process.returncode == 0
        assert time.monotonic() - began < 8
        stream.close()
        events = [json.loads(line)["event"] for line in err.decode().splitlines()]
        assert events[-1] == "control.stopped"
        assert "agent.disconnected" in events
        assert secret not in err.decode()
        assert "Traceback" not in err.decode()


async def test_a_bad_setting_and_a_held_folder_end_with_one_line_each(tmp: Path) -> None:
    async with bench(tmp / "s"):
        bad, held = await asyncio.gather(
            run(tmp, "serve", ALLOWED_ORIGINS="https://a.example/"),
            run(tmp, "serve", "--listen", "127.0.0.1:0"),
        )
        assert (bad.code, held.code) == (3, 4)
        assert "ALLOWED_ORIGINS" in bad.err and "[config.invalid]" in bad.err
        assert "[control.state_dir_busy]" in held.err
        for ended in (bad, held):
            assert "Traceback" not in ended.err
            assert ended.out == ""


async def test_a_control_that_is_not_there_is_named_with_what_to_do(tmp: Path) -> None:
    missing = await call(tmp, "list-agents", "--json")
    assert (missing.code, missing.out) == (6, "")
    error = json.loads(missing.err)["error"]
    assert error["code"] == "control.unreachable"
    assert "aegis-control serve" in error["remedy"]
    (tmp / "s").mkdir()
    with listening(tmp / "s" / "control.sock"):  # there, but nobody accepts
        deaf = await call(tmp, "list-agents")
    assert (deaf.code, "[control.unreachable]" in deaf.err) == (6, True)
    plain = await call(tmp, "list-agents", "--url", "http://127.0.0.1:9", AEGIS_OPERATOR_KEY="x")
    assert (plain.code, "[control.unreachable]" in plain.err) == (6, True)


async def test_the_version_and_the_settings_need_no_control(tmp: Path) -> None:
    version = await call(tmp, "--version")
    assert version.out == f"aegis-control {__version__}\n"
    config = await call(tmp, "config", "show", "--json", MCP_AUTH_SECRET="tell-nobody")
    assert config.code == 0
    assert "tell-nobody" not in config.out
    validated = await call(tmp, "config", "validate", AEGIS_LISTEN="nowhere")
    assert (validated.code, "AEGIS_LISTEN" in validated.err) == (3, True)
    good = await call(tmp, "config", "validate", "--json")
    assert (good.code, good.data) == (0, {"status": "ok", "unknown": [], "unreadable": []})


@pytest.mark.parametrize(
    "words", [("keys", "create", "--role", "king"), ("keys",), ("nonsense",), ("serve", "--fast")]
)
async def test_a_wrong_command_line_is_two(tmp: Path, words: tuple[str, ...]) -> None:
    assert (await call(tmp, *words)).code == 2


async def test_a_limit_that_makes_no_sense_is_refused_before_control_is_asked(tmp: Path) -> None:
    wrong = await call(tmp, "keys", "create", "--role", "builder", "--limit", "colours=red")
    assert (wrong.code, "[request.invalid]" in wrong.err) == (9, True)
