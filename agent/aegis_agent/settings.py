"""
Where the agent's settings come from, and which of them wins.

The first that has a value: a command's option, the environment, `/etc/aegis/agent.env`,
`/etc/aegis/secrets.env`, the default (`AEGIS_CONFIG_DIR` names another folder than /etc/aegis).
An empty value is an unset one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from aegis_agent.config import AgentConfig, ConfigInvalid, StaticBoard, first_fault
from aegis_agent.env_files import read_env_file

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and where each came from, by its environment name."""

    config: AgentConfig
    origins: Mapping[str, str]
    unknown: tuple[str, ...]
    """`NAME in FILE` of lines in agent.env that are no setting of an agent."""
    unreadable: tuple[str, ...]
    """Files that this user may not read: under systemd they come by the environment."""


def env_names() -> dict[str, str]:
    """Every setting's environment name, by its field."""
    return {
        name: str(field.validation_alias)
        for name, field in AgentConfig.model_fields.items()
        if field.validation_alias is not None
    }


def load(**options: Any) -> AgentConfig:
    """Return the settings in force; see `load_all`."""
    return load_all(**options).config


def load_all(**options: Any) -> Loaded:
    """
    Return the settings in force; `options` are fields given on the command line (None: not given).

    Raises ConfigInvalid, which names the setting by its environment name.
    """
    folder = Path(os.environ.get("AEGIS_CONFIG_DIR") or "/etc/aegis")
    layers = [("environment", dict(os.environ))]
    unreadable = []
    for path in (folder / "agent.env", folder / "secrets.env"):
        try:
            layers.append((str(path), read_env_file(path)))
        except PermissionError:
            unreadable.append(str(path))
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field, name in env_names().items():
        origins[name] = "default"
        if options.get(field) is not None:
            given[name], origins[name] = options[field], "option"
            continue
        for origin, values in layers:
            if values.get(name, ""):
                given[name], origins[name] = values[name], origin
                break
    known = set(env_names().values())
    unknown = [
        f"{name} in {origin}"
        for origin, values in layers[1:]
        for name in values
        if origin.endswith("agent.env") and name not in known
    ]
    config = _with_boards(given)
    _refuse_plain_http(config)
    return Loaded(config, origins, tuple(unknown), tuple(unreadable))


def _with_boards(given: Mapping[str, Any]) -> AgentConfig:
    try:
        config = AgentConfig.model_validate(given)
        path = config.config_file or config.state_dir / "agent.toml"
        boards = _boards(path, must_exist=config.config_file is not None)
    except ValidationError as exc:
        raise ConfigInvalid(first_fault(exc)) from exc
    try:
        return AgentConfig.model_validate({**given, "boards": boards})
    except ValidationError as exc:
        raise ConfigInvalid(f"{path}: {first_fault(exc)}", path=str(path)) from exc


def _boards(path: Path, *, must_exist: bool) -> tuple[StaticBoard, ...]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        if must_exist:
            raise ConfigInvalid(f"{path} is not there", path=str(path)) from exc
        return ()
    except OSError as exc:
        raise ConfigInvalid(f"{path} can't be read: {exc.strerror}", path=str(path)) from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigInvalid(f"{path} can't be read: {exc}", path=str(path)) from exc
    rows = data.get("boards", [])
    if not isinstance(rows, list):
        raise ConfigInvalid(f"{path}: boards are written as [[boards]]", path=str(path))
    try:
        return tuple(StaticBoard.model_validate(row) for row in rows)
    except ValidationError as exc:
        raise ConfigInvalid(f"{path}: boards: {first_fault(exc)}", path=str(path)) from exc


def _refuse_plain_http(config: AgentConfig) -> None:
    parts = urlsplit(config.control_base_url)
    if parts.scheme == "http" and parts.hostname not in _LOCAL and not config.allow_insecure:
        raise ConfigInvalid(
            "CONTROL_BASE_URL is plain http to another host",
            remedy="Use https, or set AEGIS_ALLOW_INSECURE=1 in a network that you trust.",
        )
