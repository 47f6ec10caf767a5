"""Files of plain `NAME=value` lines, as systemd's EnvironmentFile reads them."""

from __future__ import annotations

from pathlib import Path

from aegis_protocol.env_file import EnvLineWrong, env_values

from aegis_agent.config import ConfigInvalid


def read_env_file(path: Path) -> dict[str, str]:
    """
    Return the settings in `path`; nothing when the file is not there.

    Raises ConfigInvalid, which names a wrong line by its number, and PermissionError when the file
    is not for this user.
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
    try:
        return env_values(text)
    except EnvLineWrong as exc:
        raise ConfigInvalid(f"{path}, {exc}", path=str(path)) from exc
