"""Where the settings come from: options, the environment, and two env files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_protocol.env_file import EnvLineWrong, env_values
from pydantic import ValidationError

from aegis_control.config import ConfigInvalid, ControlConfig


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and where each came from, by its environment name."""

    config: ControlConfig
    origins: Mapping[str, str]
    unknown: tuple[str, ...]
    """`NAME in FILE` of lines in control.env that are no setting of control."""
    unreadable: tuple[str, ...]
    """Files that this user may not read: under systemd they come by the environment."""


def config_dir() -> Path:
    return Path(os.environ.get("AEGIS_CONFIG_DIR") or "/etc/aegis")


def default_policy_file() -> Path:
    """Where a policy is looked for that no setting names; it need not be there."""
    return config_dir() / "policy.toml"


def env_names() -> dict[str, str]:
    """Return every field's environment name, by field."""
    return {name: str(field.validation_alias) for name, field in ControlConfig.model_fields.items()}


def load(**options: Any) -> Loaded:
    """
    Return the settings in force; `options` are fields given on the command line (None: not given).

    Raises ConfigInvalid, which names the setting by its environment name.
    """
    folder = config_dir()
    files = [folder / "control.env", folder / "secrets.env"]
    layers = [("environment", dict(os.environ))]
    unreadable = []
    for path in files:
        try:
            layers.append((str(path), read_env_file(path)))
        except PermissionError:
            layers.append((str(path), {}))
            unreadable.append(str(path))
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field, name in env_names().items():
        origins[name] = "default"
        if options.get(field) is not None:
            given[field], origins[name] = options[field], "option"
            continue
        for origin, values in layers:
            if values.get(name, "") != "":
                given[field], origins[name] = values[name], origin
                break
    given.setdefault("policy_file", default_policy_file())
    try:
        config = ControlConfig(**given)
    except ValidationError as exc:
        raise _invalid(exc, origins) from exc
    known = set(env_names().values())
    unknown = [
        f"{name} in {origin}"
        for origin, values in layers[1:2]
        for name in values
        if name not in known
    ]
    return Loaded(config, origins, tuple(unknown), tuple(unreadable))


def read_env_file(path: Path) -> dict[str, str]:
    """
    Return the `NAME=value` lines of `path`; nothing when the file is not there.

    Raises ConfigInvalid, which names a wrong line by its number, and PermissionError when the file
    is not for this user.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise ConfigInvalid(f"{path} can't be read: {why}", path=str(path)) from exc
    try:
        return env_values(text)
    except EnvLineWrong as exc:
        raise ConfigInvalid(f"{path}, {exc}", path=str(path)) from exc


def _invalid(exc: ValidationError, origins: Mapping[str, str]) -> ConfigInvalid:
    names = env_names()
    settings, lines = [], []
    for wrong in exc.errors(include_url=False, include_input=False):
        field = str(wrong["loc"][0]) if wrong["loc"] else ""
        name = names.get(field, field)
        detail = wrong["msg"].removeprefix("Value error, ")
        origin = origins.get(name, "default")
        where = f" (from {origin})" if origin not in ("default", "environment") else ""
        settings.append(name)
        lines.append(f"{name}{where}: {detail}" if name else detail)
    return ConfigInvalid("; ".join(lines), setting=settings[0], settings=settings)
