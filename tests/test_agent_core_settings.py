"""The agent's settings and its log: where they come from, what is wrong, what is never shown."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aegis_agent import log
from aegis_agent.config import AgentConfig, ConfigInvalid, StaticBoard
from aegis_agent.settings import Loaded, env_names, load, load_all

SECRET = "a-secret-of-forty-characters-that-nobody-sees"


@pytest.fixture
def etc(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An /etc/aegis of our own, and a state directory that is not there."""
    monkeypatch.setenv("AEGIS_CONFIG_DIR", str(tmp))
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp / "state"))
    return tmp


@pytest.fixture
def env(etc: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def wrong(**options: Any) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as refused:
        load(**options)
    return refused.value


def test_what_stands_first_wins(etc: Path, env: Callable[..., None]) -> None:
    (etc / "agent.env").write_text("# a comment\n\nAEGIS_SLOTS=3\nAEGIS_MEMORY_MB=2048\n")
    (etc / "secrets.env").write_text(f"AGENT_AUTH_SECRET='{SECRET}'\nAEGIS_MEMORY_MB=1\n")
    env(AEGIS_SLOTS="5", AEGIS_LINK_TIMEOUT="")
    loaded = load_all(control_base_url="https://control.example.org/")
    config, origins = loaded.config, loaded.origins
    assert (config.slots, config.memory_mb, config.link_timeout_s) == (5, 2048, 15)
    assert config.control_base_url == "https://control.example.org"
    assert config.agent_auth_secret is not None
    assert config.agent_auth_secret.get_secret_value() == SECRET
    assert origins["CONTROL_BASE_URL"] == "option"
    assert origins["AEGIS_SLOTS"] == "environment"
    assert origins["AEGIS_MEMORY_MB"] == str(etc / "agent.env")
    assert origins["AGENT_AUTH_SECRET"] == str(etc / "secrets.env")
    assert origins["AEGIS_LINK_TIMEOUT"] == "default"


def test_a_variable_of_somebody_else_is_no_setting(env: Callable[..., None]) -> None:
    env(NAME="wsl-host", LOG="nonsense", SLOTS="x", BOARDS="x", LABELS="x", aegis_slots="x")
    assert load().slots >= 1


def test_a_line_that_no_agent_reads_is_found(etc: Path) -> None:
    (etc / "agent.env").write_text("AEGIS_SLOT=3\n")
    (etc / "secrets.env").write_text("MCP_AUTH_SECRET=x\n")  # control's, in the shared file
    assert load_all().unknown == (f"AEGIS_SLOT in {etc / 'agent.env'}",)


def test_a_file_for_other_eyes_is_passed_over(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, **_: Any) -> str:
        if path.name == "secrets.env":
            raise PermissionError(13, "Permission denied")
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", closed)
    assert load_all().unreadable == (str(etc / "secrets.env"),)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AEGIS_SLOTS", "x", "AEGIS_SLOTS"),
        ("AEGIS_SLOTS", "0", "AEGIS_SLOTS"),
        ("AEGIS_SLOTS", "1000", "AEGIS_SLOTS"),
        ("AEGIS_CPU_CORES", "inf", "AEGIS_CPU_CORES"),
        ("AEGIS_LINK_TIMEOUT", "nan", "AEGIS_LINK_TIMEOUT"),
        ("AEGIS_CONNECT_TIMEOUT", "-1", "AEGIS_CONNECT_TIMEOUT"),
        ("AEGIS_SEND_QUEUE_BYTES", "131073", "AEGIS_SEND_QUEUE_BYTES"),
        ("AEGIS_AGENT_NAME", "no spaces", "AEGIS_AGENT_NAME"),
        ("AEGIS_AGENT_LABELS", "site", "site=lab1,room=2"),
        ("AEGIS_LOG", "loud", "'loud' is no level"),
        ("AEGIS_LOG", "info,=debug", "'=debug' is no level"),
        ("AEGIS_DISCOVER_BOARDS", "maybe", "AEGIS_DISCOVER_BOARDS"),
        ("CONTROL_BASE_URL", "control.example.org", "such as https://"),
        ("CONTROL_BASE_URL", "ftp://control.example.org", "such as https://"),
        ("CONTROL_BASE_URL", "https://user:pass@control.example.org", "such as https://"),
        ("CONTROL_BASE_URL", "https://control.example.org/?a=b", "such as https://"),
        ("CONTROL_BASE_URL", "https://control.example.org:99999", "CONTROL_BASE_URL"),
        ("CONTROL_BASE_URL", "http://[::1", "CONTROL_BASE_URL"),
        ("CONTROL_BASE_URL", "http://control.example.org", "plain http"),
        ("AEGIS_AGENT_CONFIG", "/nowhere/agent.toml", "/nowhere/agent.toml is not there"),
        ("AGENT_AUTH_SECRET", "x" * 257, "AGENT_AUTH_SECRET: at most 256"),
    ],
)
def test_a_wrong_value_is_named(env: Callable[..., None], name: str, value: str, said: str) -> None:
    env(**{name: value})
    error = wrong()
    assert said in error.message
    assert "user:pass" not in error.message
    assert "xxxx" not in error.message


def test_a_line_that_is_none_is_named_by_its_number_alone(etc: Path) -> None:
    (etc / "secrets.env").write_text(f"\nAGENT_AUTH_SECRET {SECRET}\n")
    error = wrong()
    assert "secrets.env, line 2" in error.message
    assert SECRET not in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("boards = 7", "[[boards]]"),
        ("[[boards]]\nid = 7", "id"),
        ('[[boards]]\nid = "a"\nport = "COM"', "port"),
        ('[[boards]]\nid = "a"\nport = "/dev/x"\nprot = "y"', "prot"),
        ('[[boards]]\nid = "a"\nport = "/dev/x"\n' * 2, "two boards are called a"),
        ("[[boards", "can't be read"),
        ("\xff", "can't be read"),
    ],
)
def test_a_wrong_list_of_boards_is_named_with_its_file(etc: Path, text: str, said: str) -> None:
    (etc / "state").mkdir()
    (etc / "state/agent.toml").write_bytes(text.encode("latin-1"))
    error = wrong()
    assert said in error.message
    assert str(etc / "state/agent.toml") in error.message


def test_the_list_of_boards_is_read(etc: Path) -> None:
    path = etc / "boards.toml"
    path.write_text('[[boards]]\nid = "b"\nport = "socket://h:1"\nlabels = { site = "lab1" }\n')
    board = StaticBoard(id="b", port="socket://h:1", labels={"site": "lab1"})
    assert load(config_file=path).boards == (board,)


def test_a_state_directory_is_found_from_anywhere(
    env: Callable[..., None], tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp)
    env(AEGIS_STATE_DIR="here", HOME=str(tmp))
    assert load().state_dir == tmp / "here"
    env(AEGIS_STATE_DIR="~/there")
    assert load().state_dir == tmp / "there"


def test_a_secret_is_shown_nowhere(env: Callable[..., None]) -> None:
    env(AGENT_AUTH_SECRET=SECRET)
    loaded: Loaded = load_all()
    assert SECRET not in repr(loaded)
    assert SECRET not in loaded.config.model_dump_json()


def test_every_setting_has_a_name_of_its_own() -> None:
    assert set(env_names()) == set(AgentConfig.model_fields) - {"boards"}
    assert len(set(env_names().values())) == len(env_names())


# The log.


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged, as events; the configuration before is restored."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    logging.root.handlers, logging.root.level = handlers, level


def test_levels_are_by_part(logged: Callable[[], list[dict[str, Any]]]) -> None:
    log.configure("warning,links=debug,links.rpc=error,agent=info")
    for name in ("aegis_links.spool", "aegis_links.rpc", "aegis_agent.jobs", "another"):
        for method in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger(name), method)(f"{name}.{method}")
    structlog.get_logger().info("nameless.info")  # an agent's module
    events = [event["event"] for event in logged()]
    counted = {
        name: sum(event.startswith(name) for event in events)
        for name in ("aegis_links.spool", "aegis_links.rpc", "aegis_agent", "another", "nameless")
    }
    assert counted == {
        "aegis_links.spool": 4,
        "aegis_links.rpc": 1,
        "aegis_agent": 3,
        "another": 2,
        "nameless": 1,
    }


def test_a_traceback_has_no_local_variables(logged: Callable[[], list[dict[str, Any]]]) -> None:
    log.configure("info")
    try:
        token = SECRET
        raise KeyError(len(token))
    except KeyError as exc:
        structlog.get_logger().error("task.crashed", exc_info=exc)
        logging.getLogger("asyncio").error("never retrieved", exc_info=exc)
    ours, library = logged()
    assert SECRET not in json.dumps([ours, library])
    assert ours["exception"][0]["exc_type"] == "KeyError"
    assert ours["exception"][0]["frames"]
    assert library["event"] == "library.spoke"
    assert library["exception"]


def test_a_terminals_traceback_has_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, handlers, level = Terminal(), logging.root.handlers[:], logging.root.level
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        log.configure("info")
        try:
            token = SECRET
            raise KeyError(len(token))
        except KeyError:
            structlog.get_logger().exception("task.crashed")
    finally:
        structlog.reset_defaults()
        logging.root.handlers, logging.root.level = handlers, level
    assert "KeyError" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_a_fact_that_is_called_a_secret_is_redacted(
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    log.configure("info")
    structlog.get_logger().info("x.happened", token=SECRET, turn_credential=SECRET, size_bytes=3)
    (event,) = logged()
    assert SECRET not in json.dumps(event)
    assert event["size_bytes"] == 3
