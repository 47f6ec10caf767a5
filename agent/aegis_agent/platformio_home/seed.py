"""
What a core directory needs before PlatformIO builds without a network: SCons as its package, our
platform, and a state file of this very version.

Each package is made under a temporary name and renamed, so that a reader sees it whole or not.
"""

from __future__ import annotations

import compileall
import json
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aegis_protocol.failures.toolchain import InstallFailed

from aegis_agent.files import write_atomic
from aegis_agent.platformio_home.layout import STARTER, Layout, pins

_SCRATCH_PREFIX: Final = ".new-"
_SCONS_PY: Final = '''\
"""Start SCons from this package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import SCons.Script  # noqa: E402

SCons.Script.main()
'''


def seed_core(layout: Layout, *, fixtures: Path) -> None:
    """
    Put tool-scons (out of the finished `layout.venv`), aegis-esp and the state file into the core.
    What others installed there stays. Blocks for about a second.
    """
    for folder in (layout.core, layout.packages, layout.platforms):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    _replace(layout.packages / "tool-scons", lambda at: _make_scons(layout, at))
    _replace(layout.platforms / "aegis-esp", lambda at: _make_platform(fixtures / "platform", at))
    write_atomic(layout.starter, STARTER.read_bytes())
    write_state(layout.core)


def clear_scratch(layout: Layout) -> None:
    """Remove what an installation that was killed left behind; call it under the home's lock."""
    for left in layout.home.glob(_SCRATCH_PREFIX + "*"):
        shutil.rmtree(left, ignore_errors=True)


def open_to_all(folder: Path) -> None:
    """Let other users read all of `folder`, whatever umask it was made under."""
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if path.is_dir() or mode & stat.S_IXUSR else 0o444))


def write_state(core: Path) -> None:
    """
    Write the state file that says "nothing to upgrade". An older `last_version` costs a minute of
    retries on a machine without a network, and a missing one prints a welcome into every build.
    """
    state = {"last_version": pins()["platformio"]}
    write_atomic(core / "appstate.json", json.dumps(state).encode())


def scons_package_version(scons: str) -> str:
    """Return the version of PlatformIO's tool-scons for SCons `scons`: 4.11.1 is 4.41101.0."""
    major, minor, patch = (int(part) for part in scons.split("."))
    return f"4.{major}{minor:02}{patch:02}.0"


def _make_scons(layout: Layout, at: Path) -> None:
    sources = sorted(layout.venv.glob("lib/python*/site-packages/SCons"))
    if not sources:
        raise InstallFailed("the environment that was made has no SCons in it")
    shutil.copytree(sources[0], at / "SCons", ignore=shutil.ignore_patterns("__pycache__"))
    (at / "scons.py").write_text(_SCONS_PY, encoding="utf-8")
    # Builds can't write here: without this each of them would compile SCons again.
    compileall.compile_dir(at, quiet=2)
    version = scons_package_version(pins()["scons"])
    _write_json(
        at / "package.json",
        {"name": "tool-scons", "version": version, "description": "A software construction tool"},
    )
    _write_json(at / ".piopm", _metadata("tool", "platformio", "tool-scons", version))


def _make_platform(source: Path, at: Path) -> None:
    shutil.copytree(
        source, at, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".piopm")
    )
    manifest = json.loads((source / "platform.json").read_text(encoding="utf-8"))
    metadata = _metadata("platform", "aegis", manifest["name"], manifest["version"])
    _write_json(at / ".piopm", metadata)


def _metadata(kind: str, owner: str, name: str, version: str) -> dict[str, Any]:
    spec = {"owner": owner, "id": None, "name": name, "requirements": None, "uri": None}
    return {"type": kind, "name": name, "version": version, "spec": spec}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _replace(target: Path, make: Callable[[Path], None]) -> None:
    # Beside core/, not in packages/ or platforms/, where PlatformIO would take it for a package.
    with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=target.parents[2]) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir(mode=0o755)
        make(fresh)
        open_to_all(fresh)
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)
