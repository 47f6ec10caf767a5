"""
What every test stands on: an environment of its own, and nothing left behind.

    tmp                          a folder that the unprivileged build user can enter too
    @pytest.mark.requires(...)   commands, or `root`, `linux`: without them a test is skipped at
                                 a desk and fails under CI, where nothing is skipped

`waiting.until` waits for a fact. Each test is bounded by pytest-timeout (pyproject.toml).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil
import pytest
import structlog
from databases import postgres, store_kind, stores

__all__ = ["postgres", "store_kind", "stores"]

# A setting of the developer's machine must not decide a test.
_OURS = ("AEGIS_", "ESPCTL_", "PLATFORMIO_", "CONTROL_", "ALLOWED_", "OIDC_")
_SECRETS = ("MCP_AUTH_SECRET", "AGENT_AUTH_SECRET")
_HOMES = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
_DATABASES = {"database_url", "postgres_url", "database_kind"}
_UNDER_CI = bool(os.environ.get("CI"))
_LEFT_BEHIND_S = 5.0

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*what): commands, or root, linux")
    for name in list(os.environ):
        if name.startswith(_OURS) or name.startswith(_SECRETS) or name in _HOMES:
            del os.environ[name]
    os.environ["HOME"] = str(_folder_of_the_run(config, "aegis-home-"))
    # A run has its own folders: pytest's usual ones are shared by all runs, and each closes them
    # anew to other users, the one who builds included. Workers get theirs from the first process.
    if not hasattr(config, "workerinput") and config.option.basetemp is None:
        config.option.basetemp = str(_folder_of_the_run(config, "aegis-tests-"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    A test marked `both_stores` runs with either, PostgreSQL among the long ones; but not one that
    names its database itself, is marked `sqlite`, or has no folder and so no control.
    """
    names = set(metafunc.fixturenames)
    marked = {mark.name for mark in metafunc.definition.iter_markers()}
    wanted = "both_stores" in marked and "sqlite" not in marked
    if wanted and "tmp" in names and not names & _DATABASES:
        kinds = ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)]
        metafunc.parametrize("store_kind", kinds, indirect=True, scope="session")


def pytest_sessionstart(session: pytest.Session) -> None:
    """
    A run that is ended from outside (a time limit) takes leave as after Ctrl-C: fixtures give back
    what they hold, and the folders of the run are removed.
    """

    def leave(number: int, frame: object) -> NoReturn:
        session.shouldstop = "SIGTERM"  # if a test swallows what is raised
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        for what in marker.args:
            if not _has(what):
                pytest.skip(f"{what} is needed and not here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield))


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A folder that others can enter (pytest's own is closed to them), with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="aegis-")).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def log_is_as_it_comes() -> None:
    """A program that ran in an earlier test may have set a level that hides this one's events."""
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Every child that a test started has ended with it; a survivor is killed and named."""
    before = {child.pid for child in _children()}
    yield
    started = [child for child in _children() if not _stems_from(child, before)]
    _, alive = psutil.wait_procs(started, timeout=_LEFT_BEHIND_S)
    names = []
    for child in alive:
        try:
            names.append(f"{child.pid}: {' '.join(child.cmdline())[:200]}")
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_LEFT_BEHIND_S)
    assert not names, f"left running: {names}"


def _folder_of_the_run(config: pytest.Config, prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def _judged(report: Report) -> Report:
    if _UNDER_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI skips nothing: {report.longrepr}"
    return report


def _children() -> list[psutil.Process]:
    """Our descendants; of a container or sandbox only what started it, which ends the rest."""
    ours = _pid_namespace(os.getpid())
    descendants = psutil.Process().children(recursive=True)
    return [child for child in descendants if _pid_namespace(child.pid) in (ours, None)]


def _stems_from(child: psutil.Process, before: set[int]) -> bool:
    """Tell whether a process is one of `before` or a child of one: a server's are its own."""
    try:
        return any(process.pid in before for process in (child, *child.parents()))
    except psutil.NoSuchProcess:
        return False


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None  # it has just ended, or there is no /proc


def _has(what: str) -> bool:
    match what:
        case "root":
            return os.geteuid() == 0
        case "linux":
            return sys.platform == "linux"
        case _:
            return shutil.which(what) is not None
