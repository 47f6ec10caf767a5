"""Control's settings: where they come from, and what is refused at start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from aegis_control import log
from aegis_control.commands.config_commands import show, validate
from aegis_control.config import ConfigInvalid, ControlConfig
from aegis_control.config_sources import env_names, load
from aegis_protocol.failures.http import PolicyInvalid
from pydantic import SecretStr


@pytest.fixture
def etc(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AEGIS_CONFIG_DIR", str(tmp))
    return tmp


def test_every_field_has_an_environment_name_of_its_own() -> None:
    names = env_names()
    assert set(names) == set(ControlConfig.model_fields)
    assert len(set(names.values())) == len(names)
    assert all(name.isupper() for name in names.values())


def test_the_environment_wins_over_files_and_an_option_over_both(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (etc / "control.env").write_text("AEGIS_LISTEN=127.0.0.1:1\nAEGIS_LOG=debug\n# comment\n\n")
    (etc / "secrets.env").write_text("MCP_AUTH_SECRET='quoted $HOME'\nAEGIS_LOG=error\n")
    monkeypatch.setenv("AEGIS_LISTEN", "127.0.0.1:2")
    loaded = load()
    assert loaded.config.listen == "127.0.0.1:2"
    assert loaded.config.log == "debug"
    assert loaded.config.mcp_secrets == ("quoted $HOME",)
    assert loaded.origins["AEGIS_LISTEN"] == "environment"
    assert loaded.origins["AEGIS_LOG"] == str(etc / "control.env")
    assert loaded.origins["ALLOWED_CHANNELS"] == "default"
    assert load(listen="127.0.0.1:3").config.listen == "127.0.0.1:3"
    assert load(listen="127.0.0.1:3").origins["AEGIS_LISTEN"] == "option"


def test_empty_is_unset(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MCP_AUTH_SECRET", "AGENT_AUTH_SECRET", "ALLOWED_CHANNELS", "AEGIS_LISTEN"):
        monkeypatch.setenv(name, "")
    config = load().config
    assert config.mcp_secrets == config.agent_secrets == ()
    assert config.allowed_channels == ("espctl", "source", "pty", "firmware", "serial")
    assert config.listen == "127.0.0.1:8470"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALLOWED_ORIGINS", "https://a.example/", "slash: write https://a.example"),
        ("ALLOWED_ORIGINS", "*", "wildcard"),
        ("ALLOWED_ORIGINS", "https://*.example.org", "wildcard"),
        ("ALLOWED_ORIGINS", "a.example.org", "no scheme: write https://a.example.org"),
        ("ALLOWED_ORIGINS", "a.example.org:8080/", "no scheme: write https://a.example.org:8080"),
        ("ALLOWED_ORIGINS", "ftp://a.example.org", "no origin"),
        ("ALLOWED_ORIGINS", "https://a.example/app", "host and port: write https://a.example"),
        ("ALLOWED_ORIGINS", "https://user@a.example", "host and port: write https://a.example"),
        ("ALLOWED_ORIGINS", "https://A.example", "upper-case letters: write https://a.example"),
        ("ALLOWED_ORIGINS", "https://a.example:443", "leave out: write https://a.example"),
        ("ALLOWED_ORIGINS", "https://a.example:port", "port"),
        ("ALLOWED_ORIGINS", "https://ok.example, null", "no origin"),
        ("ALLOWED_CHANNELS", "espctl,telnet", "telnet"),
        ("AEGIS_LISTEN", "8470", "host:port"),
        ("AEGIS_LISTEN", "127.0.0.1:99999", "host:port"),
        ("CONTROL_PUBLIC_BASE_URL", "control.example.org", "URL"),
        ("CONTROL_PUBLIC_BASE_URL", "https://user:pw@control.example.org", "URL"),
        ("AEGIS_GRANT_SECS", "31", "less than or equal to 30"),
        ("AEGIS_GRANT_SECS", "4", "greater than or equal to 5"),
        ("AEGIS_STUN_URLS", "stun.example.org", "STUN"),
        ("AEGIS_TURN_URLS", "turn:user@turn.example.org", "TURN"),
        ("AEGIS_TRUSTED_PROXIES", "10.0.0.0/33", "AEGIS_TRUSTED_PROXIES"),
        ("AEGIS_LOG", "loud", "loud"),
        ("AEGIS_TLS_CERT_FILE", "/x.pem", "belong together"),
        ("AEGIS_TURN_SECRET", "alone", "belong together"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_reason(
    etc: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert words in refused.value.message
    assert refused.value.message.startswith(name) or words == "belong together"


def test_good_lists_are_split_at_commas_and_spaces(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.example, http://localhost:3000")
    monkeypatch.setenv("AEGIS_TRUSTED_PROXIES", "10.0.0.0/8 ::1/128")
    config = load().config
    assert config.allowed_origins == ("https://a.example", "http://localhost:3000")
    assert [str(net) for net in config.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


def test_a_line_that_is_no_setting_is_named_by_number_and_not_shown(etc: Path) -> None:
    (etc / "secrets.env").write_text("# fine\nMCP_AUTH_SECRET=x\nmy secret without a name\n")
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert "line 3" in refused.value.message
    assert "without a name" not in str(refused.value.body())


def test_a_file_of_another_user_is_passed_over_and_named(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (etc / "secrets.env").write_text("MCP_AUTH_SECRET=x\n")
    (etc / "control.env").write_text("AEGIS_LOG=debug\n")
    read = Path.read_text

    def refused(path: Path, *args: Any, **more: Any) -> str:
        # root may read everything: the kernel's answer to others is played here
        if path.name == "secrets.env":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", refused)
    loaded = load()
    assert loaded.unreadable == (str(etc / "secrets.env"),)
    assert (loaded.config.log, loaded.config.mcp_secrets) == ("debug", ())


def test_a_setting_that_control_does_not_know_is_told(etc: Path) -> None:
    (etc / "control.env").write_text("ALLOWED_ORIGIN=https://a.example\n")
    assert load().unknown == (f"ALLOWED_ORIGIN in {etc / 'control.env'}",)


def test_the_settings_are_shown_without_their_secrets(
    etc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MCP_AUTH_SECRET", "tell-nobody")
    monkeypatch.setenv("AEGIS_DATABASE_URL", "postgresql+asyncpg://u:hunter2@db/x")
    show(as_json=True)
    text = capsys.readouterr().out
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(text)["settings"]}
    assert rows["MCP_AUTH_SECRET"] == {
        "name": "MCP_AUTH_SECRET",
        "value": "[set]",
        "from": "environment",
    }
    assert "tell-nobody" not in text
    assert "hunter2" not in text
    assert set(rows) == set(env_names().values())


def test_settings_can_not_be_changed_once_they_are_read() -> None:
    config = ControlConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.mcp_auth_secret = SecretStr("x")


def test_a_log_spec_has_levels_for_parts_and_a_format() -> None:
    spec = log.check_spec("warning,link=debug, http=error,json")
    assert (spec.level, spec.parts, spec.format) == (30, {"link": 10, "http": 40}, "json")


def test_events_are_json_lines_with_levels_by_part_and_no_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        log.configure("warning,link=debug,json")
        log.get_logger("link").debug("link.tried", agent_id="ag-1")
        log.get_logger("http").info("request.answered")
        log.get_logger("http").warning("key.shown", api_key="aegis_sk_x", auth_token="t")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
    assert [line["event"] for line in lines] == ["link.tried", "key.shown"]
    assert lines[0]["agent_id"] == "ag-1"
    assert (lines[1]["api_key"], lines[1]["auth_token"]) == ("[redacted]", "[redacted]")


def test_all_that_is_wrong_is_told_at_once(etc: Path) -> None:
    (etc / "control.env").write_text("AEGIS_GRANT_SECS=60\nAEGIS_LOG=loud\nALLOWED_ORIGINS=*\n")
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert refused.value.facts["settings"] == ["ALLOWED_ORIGINS", "AEGIS_LOG", "AEGIS_GRANT_SECS"]
    for name in ("AEGIS_GRANT_SECS", "AEGIS_LOG", "ALLOWED_ORIGINS", str(etc / "control.env")):
        assert name in refused.value.message


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        (
            "ALLOWED_ORIGINS",
            "https://m\u00fcnchen.example:8443",
            "https://xn--mnchen-3ya.example:8443",
        ),
        ("ALLOWED_ORIGINS", "https://a.example:", "https://a.example"),
        ("AEGIS_TRUSTED_PROXIES", "::1 10.1.2.3/8", "10.0.0.0/8"),
        ("AEGIS_TRUSTED_PROXIES", "proxy.example", "10.0.0.0/8 or fd00::/8"),
        ("AEGIS_DATABASE_URL", "postgresql://u:hidden@h/aegis", "postgresql+asyncpg://"),
        ("AEGIS_DATABASE_URL", "sqlite:///hidden.db", "sqlite+aiosqlite:///PATH"),
        ("AEGIS_DATABASE_URL", "mysql://hidden", "postgresql+asyncpg://USER:PASSWORD@HOST/NAME"),
    ],
)
def test_a_value_that_is_nearly_right_is_refused_with_the_right_one(
    etc: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, right: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert refused.value.facts["setting"] == name
    assert f"write {right}" in refused.value.message or f"as {right}" in refused.value.message
    assert "hidden" not in str(refused.value.body())


def test_validate_refuses_what_serve_would_refuse_of_the_files_that_are_named(
    etc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validate()
    assert capsys.readouterr().out == "The settings are good.\n"
    (etc / "policy.toml").write_text("[[rules]\n")
    with pytest.raises(PolicyInvalid, match=r"policy\.toml"):
        validate()
    monkeypatch.setenv("AEGIS_POLICY_FILE", str(etc / "nowhere.toml"))
    with pytest.raises(PolicyInvalid, match="is not there"):
        validate()
    monkeypatch.delenv("AEGIS_POLICY_FILE")
    (etc / "policy.toml").unlink()
    monkeypatch.setenv("AEGIS_TLS_CERT_FILE", str(etc / "nowhere.pem"))
    monkeypatch.setenv("AEGIS_TLS_KEY_FILE", str(etc / "nowhere.key"))
    with pytest.raises(ConfigInvalid, match="AEGIS_TLS_CERT_FILE"):
        validate()
