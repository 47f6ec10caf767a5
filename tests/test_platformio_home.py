"""A PlatformIO home is made whole or not at all, and builds run from it as another user."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog
from aegis_agent.platformio_home import (
    Layout,
    build_command,
    child,
    fixtures_dir,
    install,
    install_platform,
    installed_platforms,
    is_complete,
    pins,
    prepare_core,
    targets,
    unreachable_by_others,
)
from aegis_agent.platformio_home.seed import scons_package_version
from aegis_agent.toolchains.platformio import PlatformIO
from aegis_links import event_loop
from aegis_protocol.failures.toolchain import InstallFailed, ToolchainMissing
from fixtures_platformio import Project, copy_fixture, platformio_home

__all__ = ["platformio_home"]

PYTHON = Path(sys.executable)


def no_progress(words: str) -> None:
    raise AssertionError(f"nothing was to do, and it says: {words}")


def copy_home(home: Path, into: Path) -> Path:
    """A home with its own core, and the environment of `home` by a link: cheap to spoil."""
    into.mkdir()
    (into / "venv").symlink_to(home / "venv")
    shutil.copytree(home / "core", into / "core", symlinks=True)
    shutil.copy(home / "installed.json", into)
    return into


async def test_a_finished_home_is_left_alone(platformio_home: Path) -> None:
    before = Layout(platformio_home).marker.stat().st_mtime_ns
    await install(platformio_home, python=Path("/nowhere/python"), on_progress=no_progress)
    assert Layout(platformio_home).marker.stat().st_mtime_ns == before
    assert is_complete(platformio_home)


@pytest.mark.long
async def test_a_home_is_made_once_by_two_at_the_same_time_and_others_can_read_it(
    tmp: Path,
) -> None:
    home = tmp / "home"
    half_made = home / "venv" / "bin" / "python"
    half_made.parent.mkdir(parents=True)
    half_made.write_text("cut short")
    kept = home / "core" / "platforms" / "somebodys" / "platform.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    (home / ".new-of-a-killed-one").mkdir()
    said: list[str] = []
    umask = os.umask(0o077)
    try:
        await asyncio.gather(
            *(install(home, python=PYTHON, on_progress=said.append) for _ in range(2))
        )
    finally:
        os.umask(umask)
    assert said == [
        "creating the environment",
        f"installing PlatformIO {pins()['platformio']}",
        "seeding PlatformIO's packages",
    ]
    assert is_complete(home)
    assert kept.exists(), "what others installed stays"
    assert not list(home.glob(".new-*"))
    closed = [
        path
        for path in home.rglob("*")
        if not path.is_symlink()
        and not path.stat().st_mode & (0o001 if path.is_dir() else 0o004)
        and path not in (kept.parent, kept, Layout(home).lock)
    ]
    assert not closed


def test_a_step_runs_on_the_event_loop_of_the_programs_and_others_can_read_what_it_makes(
    tmp: Path,
) -> None:
    made, said = tmp / "made", list[str]()
    before = os.umask(0o077)
    try:
        for words in (f"touch {made}; echo one; echo two", "echo three"):
            argv = ("sh", "-c", words)
            event_loop.run(
                child.run(argv, environment=dict(os.environ), deadline_s=20, on_line=said.append)
            )
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o644
    assert said == ["one", "two", "three"]


async def test_an_install_that_fails_says_why_and_leaves_no_marker(tmp: Path) -> None:
    (tmp / "no-wheels").mkdir()
    with pytest.raises(InstallFailed) as failed:
        await install(
            tmp / "home",
            python=PYTHON,
            offline_wheels=tmp / "no-wheels",
            on_progress=lambda _words: None,
        )
    assert failed.value.facts["output"]
    assert failed.value.code == "toolchain.install_failed"
    assert not is_complete(tmp / "home")


async def test_after_an_upgrade_the_core_is_seeded_without_making_the_environment_again(
    platformio_home: Path, tmp: Path
) -> None:
    home = copy_home(platformio_home, tmp / "home")
    marker = json.loads(Layout(home).marker.read_text())
    Layout(home).marker.write_text(json.dumps({**marker, "platform_sha256": "another"}))
    (Layout(home).platforms / "aegis-esp" / "platform.json").write_text("old")
    with structlog.testing.capture_logs() as logs:
        assert PlatformIO(home).detect() is not None
    assert [entry["event"] for entry in logs] == ["toolchain.outdated"]
    state = Layout(home).core / "appstate.json"
    state.write_text('{"last_version": "6.1.0"}')
    said: list[str] = []
    await install(home, python=PYTHON, on_progress=said.append)
    assert said == ["seeding PlatformIO's packages"]
    assert json.loads((Layout(home).platforms / "aegis-esp" / "platform.json").read_text())
    assert json.loads(Layout(home).marker.read_text()) == marker
    with structlog.testing.capture_logs() as logs:
        assert PlatformIO(home).detect() is not None
    assert logs == []
    # An older one costs PlatformIO a minute of retries where there is no network.
    assert json.loads(state.read_text()) == {"last_version": pins()["platformio"]}


def test_the_scons_package_has_the_version_that_platformio_asks_for(platformio_home: Path) -> None:
    code = (
        "import platformio.dependencies as d, semantic_version as s, sys;"
        "print(s.Version(sys.argv[1]) in "
        "s.SimpleSpec(d.get_core_dependencies()['tool-scons']))"
    )
    version = scons_package_version(pins()["scons"])
    done = subprocess.run(
        [str(Layout(platformio_home).python), "-c", code, version],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == "True"


def test_every_pin_is_what_is_installed(platformio_home: Path) -> None:
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    )
    done = subprocess.run(
        [str(Layout(platformio_home).python), "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    have = {name.replace("_", "-"): version for name, version in json.loads(done.stdout).items()}
    have.pop("setuptools", None)  # venv brings it along until Python 3.12
    assert have == pins()


@pytest.mark.requires("riscv64-unknown-elf-gcc", "xtensa-lx106-elf-gcc")
def test_the_home_says_which_chips_it_builds_for(platformio_home: Path) -> None:
    assert targets(platformio_home) == ("esp32", "esp32c3", "esp32c6", "esp32p4")


@pytest.mark.requires("root", "setpriv", "riscv64-unknown-elf-gcc")
def test_a_build_runs_as_another_user_over_a_core_that_it_cannot_write(
    platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("hello", platformio_home, tmp)
    for path in [tmp / "core", project.path]:
        for each in [path, *path.rglob("*")]:
            os.chown(each, 65_100, 65_100, follow_symlinks=False)
    as_other = ["setpriv", "--reuid=65100", "--regid=65100", "--clear-groups", "--no-new-privs"]
    run = project.run([*as_other, *build_command(platformio_home, "esp32c3", jobs=2)])
    assert run.code == 0, run.output
    assert (project.out("esp32c3") / "firmware.bin").stat().st_uid == 65_100
    assert "If you like" not in run.output


@pytest.mark.requires("riscv64-unknown-elf-gcc")
def test_a_module_of_the_project_cannot_stand_in_for_platformios(
    platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("hello", platformio_home, tmp)
    for name in ("platformio", "json", "esptool"):
        (project.path / f"{name}.py").write_text("raise SystemExit('taken over')\n")
    run = project.build("esp32c3")
    assert run.code == 0, run.output
    assert "taken over" not in run.output


def test_a_core_left_by_a_hostile_build_is_made_anew(platformio_home: Path, tmp: Path) -> None:
    precious = tmp / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    core = tmp / "core"
    core.mkdir()
    (core / "packages").symlink_to(precious)
    (core / "sitecustomize.py").write_text("evil")
    prepare_core(Layout(platformio_home).core, core)
    assert (precious / "file").read_text() == "precious"
    assert not (core / "sitecustomize.py").exists()
    assert not (core / "packages").is_symlink()
    assert (core / "packages" / "tool-scons" / "scons.py").exists()


async def test_a_platform_is_installed_by_the_real_platformio(
    platformio_home: Path, tmp: Path
) -> None:
    home = copy_home(platformio_home, tmp / "home")
    own = tmp / "own-platform"
    shutil.copytree(fixtures_dir() / "platform", own)
    (own / "platform.py").write_text(
        (own / "platform.py").read_text().replace("AegisespPlatform", "OwnespPlatform")
    )
    manifest = json.loads((own / "platform.json").read_text())
    (own / "platform.json").write_text(
        json.dumps({**manifest, "name": "own-esp", "version": "2.0.0"})
    )
    said: list[str] = []
    await install_platform(home, f"file://{own}", on_progress=said.append)
    assert any("own-esp@2.0.0 has been installed" in line for line in said)
    found = {one.name: one.version for one in installed_platforms(Layout(home).core)}
    assert found == {"aegis-esp": "1.0.0", "own-esp": "2.0.0"}

    project = copy_fixture("hello", home, tmp)
    ini = project.path / "platformio.ini"
    ini.write_text(ini.read_text().replace("= aegis-esp\n", "= own-esp @ ^2.0\n"))
    run = project.build("esp32c3")
    assert run.code == 0, run.output


@pytest.mark.requires("root", "unshare")
def test_without_any_network_a_missing_package_is_said_at_once(
    platformio_home: Path, tmp: Path
) -> None:
    project = copy_fixture("hello", platformio_home, tmp)
    ini = project.path / "platformio.ini"
    ini.write_text(ini.read_text().replace("= aegis-esp\n", "= not-installed\n"))
    before = time.monotonic()
    command = build_command(platformio_home, "esp32c3", jobs=1)
    run = project.run(["unshare", "--net", *command])
    assert time.monotonic() - before < 20  # a minute without our starter
    assert run.code == 1
    assert "Installing not-installed" in run.output
    assert "InternetConnectionError" in run.output


@pytest.mark.parametrize("spec", ["", "--help", "a\nb", "-x"])
async def test_what_is_no_platform_is_refused(spec: str, platformio_home: Path) -> None:
    with pytest.raises(InstallFailed, match="is no platform"):
        await install_platform(platformio_home, spec, on_progress=no_progress)


async def test_a_folder_that_is_no_platform_fails_with_platformios_words(
    platformio_home: Path, tmp: Path
) -> None:
    home = copy_home(platformio_home, tmp / "home")
    (tmp / "empty").mkdir()
    with pytest.raises(InstallFailed) as failed:
        await install_platform(home, f"file://{tmp}/empty", on_progress=lambda _line: None)
    assert "platform.json" in " ".join(failed.value.facts["output"])
    assert [one.name for one in installed_platforms(Layout(home).core)] == ["aegis-esp"]


async def test_a_platform_needs_a_finished_home(tmp: Path) -> None:
    with pytest.raises(ToolchainMissing):
        await install_platform(tmp, "espressif32", on_progress=no_progress)


def test_a_folder_that_others_cannot_enter_is_named(tmp: Path) -> None:
    closed = tmp / "closed"
    (closed / "inner").mkdir(parents=True)
    assert unreachable_by_others(closed / "inner") is None
    closed.chmod(0o700)
    assert unreachable_by_others(closed / "inner") == closed


async def run_shell(
    script: str, deadline_s: float = 10.0, started: asyncio.Event | None = None
) -> list[str]:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if started is not None:
            started.set()

    await child.run(
        ["/bin/sh", "-c", script],
        environment={"PATH": "/usr/bin:/bin"},
        deadline_s=deadline_s,
        on_line=on_line,
    )
    return lines


async def test_a_child_that_does_not_end_is_killed_with_its_children() -> None:
    with pytest.raises(InstallFailed, match="did not end within"):
        await run_shell("sleep 600 & sleep 600", deadline_s=0.3)


async def test_a_canceled_child_is_killed_with_its_children() -> None:
    started = asyncio.Event()
    task = asyncio.create_task(run_shell("sleep 600 & echo started; sleep 600", 60, started))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_credentials_in_an_address_are_not_shown() -> None:
    lines = await run_shell("echo from https://user:secret@example.org/x")
    assert lines == ["from https://***@example.org/x"]


async def test_a_line_without_an_end_is_bounded() -> None:
    lines = await run_shell("head -c 300000 /dev/zero | tr '\\0' x; echo; echo last")
    assert lines[-1] == "last"
    assert sum(map(len, lines)) == 300_004
    assert max(map(len, lines)) <= 2 * 65_536


def project_without_home(tmp: Path) -> Project:
    return Project(tmp, tmp / "home", tmp / "core")


def test_the_environment_of_a_build_inherits_nothing(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATFORMIO_EXTRA_SCRIPTS", "evil.py")
    monkeypatch.setenv("AGENT_AUTH_SECRET", "secret")
    own = project_without_home(tmp).environment()
    assert "PLATFORMIO_EXTRA_SCRIPTS" not in own
    assert "secret" not in own.values()
    assert own["PATH"].startswith(f"{tmp}/home/venv/bin:")
