"""Where the settings come from: options, the environment, and two env files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from aegis_control.config import ConfigInvalid, ControlConfig

_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and where each came from, by its environment name."""

    config: ControlConfig
    origins: Mapping[str, str]
    unknown: tuple[str, ...]
    """`NAME in FILE` of lines in control.env that are no setting of control."""
    unreadable: tuple[str, ...]
    """Files that this user may not read: under systemd they come by the environment."""


def env_names() -> dict[str, str]:
    """Return every field's environment name, by field."""
    return {name: str(field.validation_alias) for name, field in ControlConfig.model_fields.items()}


def load(**options: Any) -> Loaded:
    """
    Return the settings in force; `options` are fields given on the command line (None: not given).

    Raises ConfigInvalid, which names the setting by its environment name.
    """
    folder = Path(os.environ.get("AEGIS_CONFIG_DIR") or "/etc/aegis")
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

    Blank lines and lines that begin with # are skipped; one pair of quotes around a value is taken
    off, as systemd does. Raises ConfigInvalid with the line's number, never with its text, and
    PermissionError when the file is not for this user.
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
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, sign, value = stripped.partition("=")
        if not sign or not _NAME.match(name.strip()):
            raise ConfigInvalid(f"{path}, line {number}: not NAME=value", path=str(path))
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name.strip()] = value
    return values


def _invalid(exc: ValidationError, origins: Mapping[str, str]) -> ConfigInvalid:
    wrong = exc.errors(include_url=False, include_input=False)[0]
    field = str(wrong["loc"][0]) if wrong["loc"] else ""
    names = env_names()
    name = names.get(field, field)
    detail = wrong["msg"].removeprefix("Value error, ")
    origin = origins.get(name, "default")
    where = f" (from {origin})" if origin not in ("default", "environment") else ""
    return ConfigInvalid(f"{name}{where}: {detail}" if name else detail, setting=name)
