"""Files of plain `NAME=value` lines, as systemd's EnvironmentFile reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from aegis_agent.config import ConfigInvalid

_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def read_env_file(path: Path) -> dict[str, str]:
    """
    Return the settings in `path`; nothing when the file is not there.

    Blank lines and lines that begin with # are skipped; one pair of quotes around a value is taken
    off. Raises ConfigInvalid with the line's number, never with its text, and PermissionError when
    the file is not for this user.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
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
