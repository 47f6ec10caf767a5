"""
Makes a PlatformIO home: an environment with platformio, scons and esptool, and a core directory
from which projects of our platform build with no network.

    venv (in place: a venv can't be moved)  ->  its marker  ->  core  ->  the home's marker

A marker is written last and says of what versions, so whatever was cut short or is of another
version is made again, and no more than that. Everything is readable by other users: builds run as
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.failures.toolchain import InstallFailed, ToolchainMissing

from aegis_agent.files import write_atomic
from aegis_agent.platformio_home import child
from aegis_agent.platformio_home.layout import PINS_FILE, STARTER, Layout, fixtures_dir, pins
from aegis_agent.platformio_home.seed import clear_scratch, seed_core

log = structlog.get_logger()

_LAYOUT_VERSION: Final = 1
_VENV_DEADLINE_S: Final = 60.0
_PACKAGES_DEADLINE_S: Final = 900.0
_LOCK_DEADLINE_S: Final = 1200.0
_LOCK_POLL_S: Final = 0.25
_SYSTEM_PYTHON: Final = Path("/usr/bin/python3")

Progress = Callable[[str], None]


async def install(
    home: Path, *, python: Path, offline_wheels: Path | None = None, on_progress: Progress
) -> None:
    """
    Make `home` complete; at once when it is already, with these versions and fixtures.

    python          3.11 or newer, the base of the environment. Where other users can't reach it
                    (a pyenv under /root), the system's own is taken instead
    offline_wheels  a folder of wheels to install from, and from nowhere else
    on_progress     called with what is being done now, in words

    Raises
    ------
    ToolchainMissing  no usable Python, or no fixtures
    InstallFailed     a step failed; a later call begins again where it has to
    """
    layout = Layout(home)
    wanted = await asyncio.to_thread(_wanted)
    if await asyncio.to_thread(is_current, home):
        return
    await asyncio.to_thread(_make_home, home)
    async with lock(layout):
        if await asyncio.to_thread(is_current, home):
            return  # made by another while this one waited
        log.info("platformio_home.install_started", home=str(home))
        layout.marker.unlink(missing_ok=True)
        await asyncio.to_thread(clear_scratch, layout)
        if not (_read(layout.venv_marker) == _wanted_venv() and layout.python.exists()):
            await _make_venv(layout, python, offline_wheels, on_progress)
            write_atomic(layout.venv_marker, json.dumps(_wanted_venv(), indent=1).encode())
        on_progress("seeding PlatformIO's packages")
        await asyncio.to_thread(seed_core, layout, fixtures=fixtures_dir())
        write_atomic(layout.marker, json.dumps(wanted, indent=1).encode())
        log.info("platformio_home.installed", home=str(home), platformio=pins()["platformio"])


def is_complete(home: Path) -> bool:
    """Whether `install` has once finished here and its environment is still there."""
    layout = Layout(home)
    return _read(layout.marker) is not None and layout.python.exists()


def is_current(home: Path) -> bool:
    """Whether it is complete, with what this version of the agent wants to be there."""
    try:
        return is_complete(home) and _read(Layout(home).marker) == _wanted()
    except ToolchainMissing:
        return False


@contextlib.asynccontextmanager
async def lock(layout: Layout) -> AsyncIterator[None]:
    """Hold the home's lock, which one installation has at a time, on this machine."""
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            async with asyncio.timeout(_LOCK_DEADLINE_S):
                # Another process's lock: nothing tells when it goes.
                while not _try_lock(fd):  # noqa: ASYNC110
                    await asyncio.sleep(_LOCK_POLL_S)
        except TimeoutError as exc:
            raise InstallFailed(
                f"another program is installing into {layout.home}, and does not end"
            ) from exc
        yield
    finally:
        os.close(fd)


def _make_home(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wanted() -> dict[str, object]:
    return {
        **_wanted_venv(),
        "platform_sha256": _tree_digest(fixtures_dir() / "platform"),
        "starter_sha256": hashlib.sha256(STARTER.read_bytes()).hexdigest(),
    }


def _wanted_venv() -> dict[str, object]:
    return {"layout": _LAYOUT_VERSION, "pins": pins()}


def _tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, object] | None:
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


async def _make_venv(
    layout: Layout, python: Path, offline_wheels: Path | None, on_progress: Progress
) -> None:
    base = await _base_python(python)
    requirements = Path(__file__).with_name(PINS_FILE)
    what = ["--no-deps", "-r", str(requirements)]
    if offline_wheels is not None:
        what += ["--no-index", "--find-links", str(offline_wheels)]
    uv = shutil.which("uv")
    if uv is not None:
        try:
            await _fill_venv(layout, _by_uv(uv, base, layout, what), on_progress)
            return
        except InstallFailed as exc:
            # It may lack what pip is set up with: a proxy, an index, a private CA.
            log.info("platformio_home.uv_failed", detail=exc.message)
            on_progress("uv could not do it; trying pip")
    try:
        await _fill_venv(layout, _by_pip(base, layout, what), on_progress)
    except InstallFailed as exc:
        _explain(exc)
        raise


async def _fill_venv(
    layout: Layout, commands: tuple[list[str], list[str]], on_progress: Progress
) -> None:
    create, fill = commands
    environment = _installer_environment()
    await asyncio.to_thread(shutil.rmtree, layout.venv, ignore_errors=True)
    on_progress("creating the environment")
    await child.run(create, environment=environment, deadline_s=_VENV_DEADLINE_S)
    on_progress(f"installing PlatformIO {pins()['platformio']}")
    await child.run(fill, environment=environment, deadline_s=_PACKAGES_DEADLINE_S)


def _by_uv(uv: str, base: Path, layout: Layout, what: list[str]) -> tuple[list[str], list[str]]:
    create = [uv, "venv", "--no-project", "--python", str(base), str(layout.venv)]
    # Copies: a hard link into uv's cache would let one place spoil the other.
    fill = [uv, "pip", "install", "--python", str(layout.python), "--link-mode", "copy"]
    return create, [*fill, "--compile-bytecode", *what]


def _by_pip(base: Path, layout: Layout, what: list[str]) -> tuple[list[str], list[str]]:
    create = [str(base), "-m", "venv", str(layout.venv)]
    fill = [str(layout.python), "-m", "pip", "install", "--quiet", "--no-input"]
    return create, [*fill, "--disable-pip-version-check", *what]


def _explain(failed: InstallFailed) -> None:
    """Give the one failure that a fresh Debian meets its own remedy."""
    output = " ".join(str(line) for line in failed.facts.get("output", []))
    if "ensurepip" in output:
        failed.remedy = "Install uv, or on Debian and Ubuntu: apt-get install python3-venv"


async def _base_python(python: Path) -> Path:
    """Return the interpreter to base the environment on: new enough, and others can run it."""
    refused = []
    for candidate in dict.fromkeys((python, _SYSTEM_PYTHON)):
        prefix = await _probe(candidate)
        if prefix is None:
            refused.append(f"{candidate}: no Python 3.11 or newer")
        elif os.geteuid() == 0 and (blocker := unreachable_by_others(prefix)) is not None:
            refused.append(f"{candidate}: other users can't enter {blocker}")
        else:
            return candidate
    raise ToolchainMissing(
        "no Python that builds could use: " + "; ".join(refused),
        remedy="Install Python 3.11 or newer for all users (apt-get install python3).",
    )


async def _probe(python: Path) -> Path | None:
    """Return the base prefix of `python`, or None if it is not 3.11 or newer."""
    code = "import sys; print(sys.base_prefix if sys.version_info >= (3, 11) else '')"
    lines: list[str] = []
    try:
        await child.run(
            [str(python), "-I", "-c", code],
            environment=_installer_environment(),
            deadline_s=_VENV_DEADLINE_S,
            on_line=lines.append,
        )
    except InstallFailed:
        return None
    return Path(lines[-1]) if lines and lines[-1] else None


def unreachable_by_others(path: Path) -> Path | None:
    """Return the first folder on the way to `path` that other users can't enter, or None."""
    for folder in [*reversed(path.resolve().parents), path.resolve()]:
        if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _installer_environment() -> dict[str, str]:
    """This process's environment (it knows proxies and indexes), without what would lead astray."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PLATFORMIO_", "PYTHON", "VIRTUAL_ENV", "AEGIS_"))
        and name not in ("MCP_AUTH_SECRET", "AGENT_AUTH_SECRET")
    }
