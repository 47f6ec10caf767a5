"""
How a build runs PlatformIO: a core directory of its own, a clean environment, the commands.

PlatformIO writes beside packages/ and platforms/ (locks) and into them (links to a project's own
platform), and the shared ones are read-only to builds. So each build has a small core directory
whose packages are symbolic links into the shared one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from aegis_agent.platformio_home.layout import Layout
from aegis_agent.platformio_home.seed import write_state

SOURCE_DATE_EPOCH = 946_684_800
"""The time that builds put into what they make, so that equal source gives equal bytes."""


def prepare_core(shared: Path, into: Path) -> Path:
    """
    Make `into` a core directory for one build over the packages of `shared`; return it.

    What a build before this one left in `into` is removed, since that build may have been hostile;
    its parent must be the caller's alone. The caller makes `into` writable for the build's user.
    PlatformIO's commands have `into`'s path in them: for warm builds show it to every build under
    the same one. `shared` must be visible to the build under its own path.
    """
    if into.exists():
        shutil.rmtree(into)
    for kind in ("packages", "platforms"):
        links = into / kind
        links.mkdir(parents=True)
        for package in sorted((shared / kind).iterdir()):
            (links / package.name).symlink_to(package)
    write_state(into)
    return into


def environment(home: Path, *, core: Path) -> dict[str, str]:
    """
    Return all environment variables of a build but HOME, TERM and TMPDIR, which its sandbox knows.

    Nothing is inherited: a PLATFORMIO_… variable can inject code into a build.
    """
    return {
        "PATH": f"{Layout(home).venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
        # The errors of all files in one run, not of the first alone.
        "SCONSFLAGS": "-k",
        "PLATFORMIO_CORE_DIR": str(core),
        # A project's own values for these would hide the seeded packages and cost a minute of
        # retries; the environment wins over platformio.ini.
        "PLATFORMIO_PACKAGES_DIR": str(core / "packages"),
        "PLATFORMIO_PLATFORMS_DIR": str(core / "platforms"),
        "PLATFORMIO_GLOBALLIB_DIR": str(core / "lib"),
        "PLATFORMIO_CACHE_DIR": str(core / ".cache"),
        # GCC sees a pipe even when the build has a terminal. Added to a project's own flags.
        "PLATFORMIO_BUILD_FLAGS": "-fdiagnostics-color=always",
        "PLATFORMIO_DISABLE_PROGRESSBAR": "true",
        "PLATFORMIO_DISABLE_UPGRADE_CHECK": "true",
        "PLATFORMIO_SETTING_CHECK_PLATFORMIO_INTERVAL": "9999",
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no",
    }


def pio(home: Path, *arguments: str) -> list[str]:
    """The command that runs PlatformIO. -P: nothing in a project can stand in for a module."""
    layout = Layout(home)
    return [str(layout.python), "-P", str(layout.starter), *arguments]


def build_command(home: Path, name: str, *, jobs: int) -> list[str]:
    """Return the command that builds environment `name` of the project in the current folder."""
    return pio(home, "run", "--environment", name, "--jobs", str(jobs))


def verbose_build_command(home: Path, name: str, *, jobs: int) -> list[str]:
    """`build_command`, showing every command that it runs."""
    return [*build_command(home, name, jobs=jobs), "--verbose"]


def metadata_command(home: Path, name: str) -> list[str]:
    """
    Return the command that prints, as JSON, where the images of environment `name` are.

    It runs the project's scripts, as a build does: sandbox it too.
    """
    return pio(home, "project", "metadata", "--environment", name, "--json-output")
