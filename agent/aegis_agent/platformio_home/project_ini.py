"""
Reads `platformio.ini` as PlatformIO does, without running anything of the project.

What is followed: `extra_configs` (inside the project only), `extends`, the common section `[env]`,
and `${section.option}`, `${this.option}`, `${sysenv.NAME}` (empty: builds inherit no variables).
What is left as it stands: `${PROJECT_DIR}` and other variables of the build itself.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aegis_protocol.failures.toolchain import ProjectConfigInvalid, ProjectNotPlatformIO

_FILE_LIMIT_BYTES: Final = 1 << 20
_FILES_LIMIT: Final = 64
_EXTENDS_LIMIT: Final = 200
_DEPTH_LIMIT: Final = 20
_VALUE_LIMIT_CHARS: Final = 1 << 20
_ENVIRONMENT_NAME: Final = re.compile(r"^[a-z\d_-]+$", re.IGNORECASE)
_REFERENCE: Final = re.compile(r"\$\{(?:([^.}()]+)\.)?([^}]+)\}")
_INLINE_COMMENT: Final = re.compile(r"\s+;.*$")


class ProjectIni:
    """The configuration of one project. Options come back with everything resolved."""

    def __init__(self, project_dir: Path) -> None:
        """
        Read the configuration of `project_dir`.

        Raises
        ------
        ProjectNotPlatformIO  there is no platformio.ini
        ProjectConfigInvalid  it can't be read, or reaches out of the project
        """
        self.project_dir = project_dir
        self._root = project_dir.resolve()
        # The same class and settings as PlatformIO's, and so the same idea of a comment.
        self._parser = configparser.ConfigParser(inline_comment_prefixes=("#", ";"))
        self._read: set[Path] = set()
        path = project_dir / "platformio.ini"
        if not path.is_file():
            raise ProjectNotPlatformIO(f"there is no platformio.ini in {project_dir.name}")
        self._load(path)
        for name in self.environments:
            if not _ENVIRONMENT_NAME.match(name):
                raise ProjectConfigInvalid(
                    f"[env:{name}] is no name for an environment",
                    remedy="Use letters, digits, hyphens and underscores.",
                )

    @property
    def environments(self) -> list[str]:
        return [name[4:] for name in self._parser.sections() if name.startswith("env:")]

    @property
    def default_environments(self) -> list[str]:
        wanted = self.list("platformio", "default_envs") or self.list("platformio", "env_default")
        unknown = sorted(set(wanted) - set(self.environments))
        if unknown:
            raise ProjectConfigInvalid(
                f"default_envs names {', '.join(unknown)}, which platformio.ini does not have"
            )
        return wanted

    def text(self, section: str, option: str) -> str | None:
        """Return the value of `option`, or None if neither `section` nor what it extends has it."""
        return self._value(section, option, depth=0)

    def list(self, section: str, option: str) -> list[str]:
        """Return the items of a list (one per line, or separated by a comma and a space)."""
        return _items(self.text(section, option) or "")

    def inside(self, path: str, option: str) -> Path:
        """Return `path`, as `option` gives it, under the project; outside of it is an error."""
        joined = self._root / path
        if path.startswith("~") or not joined.resolve().is_relative_to(self._root):
            raise ProjectConfigInvalid(
                f"{option} = {path} leaves the project",
                remedy="Keep everything that the project needs inside its folder.",
            )
        return joined

    def _load(self, path: Path) -> None:
        if path in self._read:
            return
        if len(self._read) >= _FILES_LIMIT:
            raise ProjectConfigInvalid(f"more than {_FILES_LIMIT} extra_configs")
        self._read.add(path)
        name = str(path.relative_to(self.project_dir))
        try:
            self._parser.read_string(_read_file(path), source=name)
        except (configparser.Error, UnicodeDecodeError, OSError) as exc:
            raise ProjectConfigInvalid(f"{name}: {' '.join(str(exc).split())}") from exc
        for pattern in self.list("platformio", "extra_configs"):
            self.inside(pattern, "extra_configs")
            try:
                found = sorted(self.project_dir.glob(pattern))
            except (ValueError, NotImplementedError) as exc:
                raise ProjectConfigInvalid(f"extra_configs: {pattern} is no pattern") from exc
            for extra in found:
                self.inside(str(extra.relative_to(self.project_dir)), "extra_configs")
                self._load(extra)

    def _value(self, section: str, option: str, *, depth: int) -> str | None:
        if depth > _DEPTH_LIMIT:
            raise ProjectConfigInvalid(f"[{section}] {option} refers to itself")
        for place in self._lineage(section):
            if self._parser.has_option(place, option):
                raw = self._get(place, option)
                return self._resolve(section, raw, depth=depth)
        return None

    def _resolve(self, section: str, raw: str, *, depth: int) -> str:
        def replace(match: re.Match[str]) -> str:
            place, name = match.group(1), match.group(2)
            if place is None:
                return match.group(0)
            if place == "sysenv":
                return ""
            if place == "this" and name == "__env__":
                return section.removeprefix("env:")
            place = section if place == "this" else place
            value = self._value(place, name, depth=depth + 1)
            if value is None and place != "platformio":
                raise ProjectConfigInvalid(
                    f"[{section}] refers to {match.group(0)}, and there is no such option"
                )
            # Its own folders have defaults that only the build knows.
            return match.group(0) if value is None else value

        value = _REFERENCE.sub(replace, raw)
        if len(value) > _VALUE_LIMIT_CHARS:
            raise ProjectConfigInvalid(f"a value in [{section}] grows without end")
        return value

    def _lineage(self, section: str) -> Iterator[str]:
        """The sections in which an option of `section` is looked for, in PlatformIO's order."""
        queue = ["env", section] if section.startswith("env:") else [section]
        steps = 0
        while queue:
            place = queue.pop()
            steps += 1
            if steps > _EXTENDS_LIMIT:
                raise ProjectConfigInvalid(f"[{section}]: what it extends goes in a circle")
            if not self._parser.has_section(place):
                continue
            yield place
            if self._parser.has_option(place, "extends"):
                queue.extend(_items(self._get(place, "extends")))

    def _get(self, section: str, option: str) -> str:
        try:
            return self._parser.get(section, option)
        except configparser.Error as exc:
            reason = " ".join(str(exc).split())
            raise ProjectConfigInvalid(f"platformio.ini: {reason}") from exc


def _items(value: str) -> list[str]:
    parts = value.split("\n" if "\n" in value else ", ")
    stripped = (part.strip() for part in parts)
    return [
        _INLINE_COMMENT.sub("", item).strip()
        for item in stripped
        if item and not item.startswith((";", "#"))
    ]


def _read_file(path: Path) -> str:
    # O_NONBLOCK: opening a named pipe must not wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("no ordinary file")
        data = file.read(_FILE_LIMIT_BYTES + 1)
    if len(data) > _FILE_LIMIT_BYTES:
        raise OSError(f"larger than {_FILE_LIMIT_BYTES} bytes")
    return data.decode("utf-8")
