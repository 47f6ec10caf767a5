"""The `aegis-agent` command: what it prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aegis_protocol import __version__
from aegis_protocol.errors import ErrorReply
from agent_control import TOKEN, ControlPlane

PROGRAM = Path(sys.executable).parent / "aegis-agent"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The code of the one error object on stderr, which has a remedy."""
        (line,) = self.err.splitlines()
        error = ErrorReply.model_validate_json(line).error
        assert error.remedy
        return error.code


class Shell:
    """A shell with nothing in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"

    async def __call__(self, *words: str, input: str = "", **env: str) -> Done:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *words,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "COLUMNS": "200",
                "AEGIS_CONFIG_DIR": str(self.folder / "etc"),
                "AEGIS_STATE_DIR": str(self.state),
                "AEGIS_DISCOVER_BOARDS": "0",
                **env,
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate(input.encode())
        assert process.returncode is not None
        done = Done(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in done.out + done.err
        return done


@pytest.fixture
def aegis_agent(tmp: Path) -> Shell:
    return Shell(tmp)


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


async def test_the_version_and_the_help_are_printed(aegis_agent: Shell) -> None:
    done, helped = await asyncio.gather(aegis_agent("--version"), aegis_agent("--help"))
    assert (done.code, done.out) == (0, f"aegis-agent {__version__}\n")
    for command in ("run", "enroll", "identity", "boards", "toolchains", "config", "virtual-board"):
        assert command in helped.out
    assert not aegis_agent.state.exists()


async def test_an_identity_is_made_once_and_kept_closed(aegis_agent: Shell) -> None:
    first = (await aegis_agent("identity", "--json")).json
    second = await aegis_agent("identity", AEGIS_AGENT_NAME="bench")
    assert second.out == f"id   {first['agent_id']}\nkey  {first['key']}\nname bench\n"
    assert (aegis_agent.state / "agent.key").stat().st_mode & 0o777 == 0o600


async def test_enrolling_says_as_whom_and_shows_no_token(
    aegis_agent: Shell, control: ControlPlane, tmp: Path
) -> None:
    (tmp / "token").write_text(f"{TOKEN}\n")
    by_file = await aegis_agent("enroll", "--url", control.url, "--token-file", str(tmp / "token"))
    by_stdin = await aegis_agent(
        "enroll", "--url", control.url, "--token-file", "-", "--json", input=f"{TOKEN}\n"
    )
    by_secret = await aegis_agent("enroll", AGENT_AUTH_SECRET=TOKEN, CONTROL_BASE_URL=control.url)
    assert (by_file.code, by_stdin.code, by_secret.code) == (0, 0, 0)
    agent_id = by_stdin.json["agent_id"]
    assert by_stdin.json == {"agent_id": agent_id, "control": control.url}
    assert by_file.out.startswith(f"Enrolled at {control.url} as {agent_id}.")
    assert TOKEN not in by_file.out + by_file.err + by_stdin.out + by_stdin.err


async def test_an_enrolment_that_fails_has_its_own_exit_code(
    aegis_agent: Shell, control: ControlPlane
) -> None:
    wish = ("enroll", "--url", control.url, "--json")
    refused, none, long = await asyncio.gather(
        aegis_agent(*wish, AEGIS_ENROLL_TOKEN="wrong"),
        aegis_agent(*wish),
        aegis_agent(*wish, AEGIS_ENROLL_TOKEN="x" * 300),
    )
    away = await aegis_agent(
        "enroll", "--url", "http://127.0.0.1:9", "--json", AEGIS_ENROLL_TOKEN="x"
    )
    assert (refused.code, refused.error) == (4, "enroll.refused")
    assert (none.code, none.error) == (2, "config.invalid")
    assert (long.code, long.error) == (2, "config.invalid")
    assert "xxxx" not in long.err
    assert (away.code, away.error) == (1, "control.unreachable")


async def test_an_agent_that_is_not_enrolled_says_what_to_do(aegis_agent: Shell) -> None:
    done = await aegis_agent("run")
    assert done.code == 1
    assert "agent.not_enrolled" in done.err
    assert "aegis-agent enroll" in done.err


async def test_boards_of_the_list_are_shown(aegis_agent: Shell, tmp: Path) -> None:
    (tmp / "agent.toml").write_text(
        '[[boards]]\nid = "bench-1"\nchip = "esp32p4"\nport = "/dev/null/absent"\n'
        'labels = { site = "lab1" }\n'
    )
    env = {"AEGIS_AGENT_CONFIG": str(tmp / "agent.toml")}
    as_json, table = await asyncio.gather(
        aegis_agent("boards", "--json", **env), aegis_agent("boards", **env)
    )
    (board,) = as_json.json["boards"]
    assert (board["id"], board["chip"], board["state"]) == ("bench-1", "esp32p4", "gone")
    assert all(word in table.out for word in ("bench-1", "esp32p4", "gone", "site=lab1"))
    assert as_json.err == ""


async def test_a_machine_without_a_toolchain_is_told_how_to_get_one(aegis_agent: Shell) -> None:
    as_json, text = await asyncio.gather(
        aegis_agent("toolchains", "list", "--json"), aegis_agent("toolchains", "list")
    )
    assert as_json.json == {"toolchains": []}
    assert "aegis-agent toolchains install" in text.out


async def test_settings_are_shown_with_where_they_came_from_and_secrets_are_not(
    aegis_agent: Shell, tmp: Path
) -> None:
    (tmp / "etc").mkdir()
    (tmp / "etc/agent.env").write_text("AEGIS_SLOTS=3\nAEGIS_SLOT=4\n")
    as_json = await aegis_agent("config", "show", "--json", AGENT_AUTH_SECRET="hush-hush")
    table = await aegis_agent("config", "show", AGENT_AUTH_SECRET="hush-hush")
    valid = await aegis_agent("config", "validate")
    rows = {row["name"]: row for row in as_json.json["settings"]}
    assert rows["AEGIS_SLOTS"] == {
        "name": "AEGIS_SLOTS", "value": 3, "from": str(tmp / "etc/agent.env"),
    }  # fmt: skip
    assert rows["AGENT_AUTH_SECRET"]["value"] == "[set]"
    assert rows["AGENT_AUTH_SECRET"]["from"] == "environment"
    assert "hush-hush" not in as_json.out + table.out
    assert "AEGIS_SLOTS" in table.out
    assert valid.code == 0
    assert "not a setting of the agent: AEGIS_SLOT" in valid.err


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (("config", "validate", "--json"), {"AEGIS_SLOTS": "x"}),
        (("config", "show", "--json"), {"AEGIS_LOG": "loud"}),
        (("config", "validate", "--json"), {"AEGIS_CA_FILE": "/nowhere/ca.pem"}),
        (("identity", "--json"), {"AEGIS_SLOTS": "x"}),
    ],
)
async def test_a_setting_that_is_wrong_is_named_in_one_line(
    aegis_agent: Shell, words: tuple[str, ...], env: dict[str, str]
) -> None:
    done = await aegis_agent(*words, **env)
    assert (done.code, done.error) == (2, "config.invalid")
    assert next(iter(env)) in done.err


async def test_a_daemon_with_a_wrong_setting_exits_with_a_code_that_is_not_restarted(
    aegis_agent: Shell,
) -> None:
    done = await aegis_agent("run", AEGIS_SLOTS="x")
    assert done.code == 2
    assert "AEGIS_SLOTS" in done.err


@pytest.mark.parametrize("words", [("identity", "--json"), ("boards", "--json"), ("run",)])
async def test_a_state_directory_that_can_not_be_is_named(
    aegis_agent: Shell, tmp: Path, words: tuple[str, ...]
) -> None:
    (tmp / "file").touch()
    done = await aegis_agent(*words, AEGIS_STATE_DIR=str(tmp / "file/state"))
    assert done.code == 1
    assert "agent.state_unusable" in done.err
    assert str(tmp / "file/state") in done.err


async def test_a_key_that_is_damaged_is_not_replaced(aegis_agent: Shell) -> None:
    aegis_agent.state.mkdir()
    (aegis_agent.state / "agent.key").write_text("no key")
    done = await aegis_agent("identity", "--json")
    assert (done.code, done.error) == (1, "agent.key_unreadable")
    assert (aegis_agent.state / "agent.key").read_text() == "no key"


async def test_a_word_too_many_is_a_usage_error(aegis_agent: Shell) -> None:
    done = await aegis_agent("run", "now")
    assert done.code == 2
