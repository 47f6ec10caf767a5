"""The text of a file of plain `NAME=value` lines, as systemd's EnvironmentFile reads them."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class EnvLineWrong(ValueError):
    """Names the line by its number, never by its text, which may be a secret."""


def env_values(text: str) -> dict[str, str]:
    """
    Return the settings in `text`.

    Blank lines and lines that begin with # are skipped; one pair of quotes around a value is taken
    off. Raises EnvLineWrong.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, sign, value = stripped.partition("=")
        if not sign or not _NAME.match(name.strip()):
            raise EnvLineWrong(f"line {number}: not NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name.strip()] = value
    return values
