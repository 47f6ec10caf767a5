"""A copy of this clone to do things to: what git tracks, as it stands in the working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NOBODY: Final = 65_534


def copy_clone(into: Path, *parts: str) -> Path:
    """Copy the tracked files, or those below `parts`, to `into`; return it."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", *parts],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


def give_to_nobody(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limit_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end with no input; its output is text. TimeoutExpired after `limit_s`."""
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def as_nobody() -> list[str]:
    """The words before a command that make it run as an ordinary user, whoever we are."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def path_with_only(folder: Path, commands: Sequence[str]) -> str:
    """Return a PATH on which there are `commands` and no others."""
    folder.mkdir()
    for command in commands:
        found = shutil.which(command)
        assert found, command
        (folder / command).symlink_to(Path(found).resolve())
    return str(folder)
