"""What holds for every command of `aegis-control`: its help, its JSON, its words and its exits."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aegis_control.cli import app
from aegis_control.commands.outcome import exit_code
from aegis_protocol.actions import Role
from aegis_protocol.control_link import Pause, Resume, Status
from certificates import a_certificate, an_authority
from control_fixtures import bench, board, key_of
from control_runs import WITHIN_S, call
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if (below := getattr(command, "commands", None)) is None:
        yield words, command
        return
    for name, one in below.items():
        yield from _commands(one, (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(app), ()))
LISTED = (
    *("serve", "migrate", "reset", "status", "list-agents", "list-jobs", "show-job", "list-boards"),
    *("keys create", "keys list", "keys revoke", "enroll-token create", "enroll-token list"),
    *("enroll-token revoke", "pause-agent", "resume-agent", "drain-agent", "reset-agent"),
    *("revoke grant", "revoke job", "revoke key", "revoke agent", "policy check", "policy show"),
    *("policy validate", "verify-token", "lease list", "lease kick", "audit verify", "config show"),
    *("config validate", "doctor", "list-grants", "list-sessions", "issuer rotate"),
)
LINES_OF_JSON = {("serve",), ("audit", "export")}


@pytest.mark.parametrize("words", LISTED)
def test_the_command_is_there(words: str) -> None:
    assert tuple(words.split()) in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_its_help_has_an_example_and_says_what_each_word_means(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    assert command.epilog.startswith(f"Example: aegis-control {' '.join(words)}")
    for parameter in command.params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_it_speaks_json_to_programs(words: tuple[str, ...]) -> None:
    options = {option for parameter in COMMANDS[words].params for option in parameter.opts}
    assert "--json" in options or words in LINES_OF_JSON


def test_whatever_is_not_there_has_one_exit_code() -> None:
    for code in ("agent.not_found", "grant.not_found", "enroll.token_not_found", "job.not_found"):
        assert exit_code(code) == 8


HOSTILE = "[/x] [red]\x1b[31mhot\x1b[0m\x07\n[link=http://a.example]b"


async def test_words_from_elsewhere_are_shown_as_they_are_and_steer_no_terminal(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client(await key_of(b.served, Role.FLASHER))
        odd = board("p4").model_copy(update={"labels": {"site": HOSTILE}})
        agent = await b.agent("lab", boards=(odd,))
        lease = {"board": {"id": "p4"}, "for_secs": 60, "note": HOSTILE}
        assert (await client.ask("POST", "/leases", lease)).status == 201
        assert (await call(tmp, "keys", "create", "--role", "viewer", "--name", HOSTILE)).code == 0
        paused = await call(tmp, "pause-agent", "lab", "--reason", HOSTILE)
        job_id = (await client.request(agent_id="lab")).body["job_id"]
        revoked = await call(tmp, "revoke", "job", job_id, "--reason", HOSTILE)
        waiting = (await client.request(agent_id="lab")).body["job_id"]
        shown = [paused, revoked]
        for words in (
            "list-agents",
            "list-boards",
            "list-jobs",
            f"show-job {waiting}",
            "keys list",
            "lease list",
            "revoke list",
            "audit",
            "list-grants",
        ):
            shown.append(await call(tmp, *words.split()))
        removed = await call(tmp, "agents", "remove", HOSTILE)
    for one in shown:
        assert one.code == 0, one.err
        assert "\x1b" not in one.out and "\x07" not in one.out
    assert (removed.code, "\x1b" in removed.err) == (8, False)
    assert sum("[/x] [red]" in one.out for one in shown) >= 6
    assert agent.id in shown[2].out


async def test_a_waiting_job_is_found_behind_any_number_of_ended_ones(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        waiting = (await client.request(target="esp32p4")).body["job_id"]
        for _ in range(3):
            ended = (await client.request()).body["job_id"]
            await client.ask("DELETE", f"/jobs/{ended}")
        found = await call(tmp, "list-jobs", "--state", "pending", "--limit", "2", "--json")
        assert [job["id"] for job in found.data["jobs"]] == [waiting]
        shown = await call(tmp, "list-jobs", "--state", "pending", "--state", "assigned")
        assert "agent.none: no agent is enrolled" in shown.out
        odd = await client.ask("GET", "/jobs?state=pending,gone")
        assert (odd.status, odd.error.facts["field"]) == (400, "state")


async def test_the_reply_to_resume_is_of_an_agent_that_has_heard_it(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent("lab")
        assert (
            "paused: the lab moves"
            in (await call(tmp, "pause-agent", "lab", "--reason", "the lab moves")).out
        )
        await agent.next(Pause)
        await agent.send(Status(paused="the lab moves"))

        async def hear() -> None:
            await agent.next(Resume)
            await agent.send(Status())

        resumed, _ = await asyncio.gather(call(tmp, "resume-agent", "lab"), hear())
    assert "online" in resumed.out and "paused" not in resumed.out


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://192.0.2.7:8470", "config.url_insecure"),
        ("control.example.org", "request.invalid"),
        ("ftp://control.example.org", "request.invalid"),
        ("http://[::1", "request.invalid"),
    ],
)
async def test_a_key_is_not_sent_to_an_address_that_is_none_or_open_to_all(
    tmp: Path, url: str, code: str
) -> None:
    (tmp / "key").write_text("aegis_sk_aaaa_bbbb")
    told = await call(tmp, "list-agents", "--url", url, "--key-file", str(tmp / "key"), "--json")
    assert told.code in (3, 9)
    assert json.loads(told.err)["error"]["code"] == code
    assert "bbbb" not in told.err


@pytest.mark.parametrize("content", [b"", b"two\nlines", "schl\u00fcssel".encode(), b"\xff\xfe"])
async def test_a_file_that_holds_no_key_is_named(tmp: Path, content: bytes) -> None:
    (tmp / "key").write_bytes(content)
    url = "http://127.0.0.1:1"
    told = await call(tmp, "list-agents", "--url", url, "--key-file", str(tmp / "key"))
    assert (told.code, "[auth.key_missing]" in told.err) == (7, True)
    assert "AEGIS_OPERATOR_KEY" in told.err and str(tmp / "key") in told.err


async def test_a_control_behind_a_private_authority_is_asked_with_its_certificate(
    tmp: Path,
) -> None:
    authority = an_authority(tmp)
    cert, key = a_certificate(tmp, authority, "127.0.0.1")
    async with bench(tmp / "s", tls_cert_file=cert, tls_key_file=key) as b:
        words = "list-agents", "--url", b.base_url, "--key-file", str(b.served.operator_key)
        stranger = await call(tmp, *words)
        known = await call(tmp, *words, AEGIS_CA_FILE=str(authority.path))
        lost = await call(tmp, *words, AEGIS_CA_FILE=str(tmp / "nowhere.pem"))
    assert (stranger.code, "certificate" in stranger.err) == (6, True)
    assert (known.code, known.err) == (0, "")
    assert (lost.code, "AEGIS_CA_FILE" in lost.err) == (3, True)


async def test_a_decision_is_asked_about_a_key_or_a_role(tmp: Path) -> None:
    async with bench(tmp / "s"):
        neither = await call(tmp, "policy", "check")
        both = await call(tmp, "policy", "check", "--key", "mcp", "--role", "viewer")
        one = await call(tmp, "policy", "check", "--role", "builder", "--label", "site=lab1")
        high = await call(tmp, "policy", "check", "--role", "builder", "--priority", "5")
        odd = await call(tmp, "policy", "check", "--role", "builder", "--label", "site")
    for told in (neither, both):
        assert (told.code, "--role" in told.err) == (9, True)
    assert one.code == 0
    assert (high.code, "priority.not_allowed" in high.out) == (10, True)
    assert (odd.code, "--label" in odd.err) == (9, True)


async def test_an_output_that_takes_nothing_ends_the_command_in_a_line(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent("lab")
        with Path("/dev/full").open("w") as full:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aegis_control", "list-agents"),
                *("--state-dir", str(tmp / "s")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=full,
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(WITHIN_S):
                _, said = await program.communicate()
    assert program.returncode == 1
    assert said.decode() == (
        "aegis-control: the output can't be written: No space left on device\n"
    )
