"""
Where things lie in a PlatformIO home.

    home/venv/             platformio, scons, esptool: an environment of its own
      complete.json        its pins, once all of them are in it
    home/core/             PLATFORMIO_CORE_DIR, shared by all builds, read-only to them
      packages/            tool-scons, and what `install_platform` brought
      platforms/           aegis-esp, and what `install_platform` brought
      start_platformio.py  what runs PlatformIO
    home/installed.json    what `install` finished; without it the home is unfinished
    home/lock              held while something is installed
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from aegis_protocol.failures.toolchain import ToolchainMissing

PINS_FILE: Final = "pins.txt"
STARTER: Final = Path(__file__).with_name("start_platformio.py")


@dataclass(frozen=True)
class Layout:
    """The paths of one home."""

    home: Path

    @property
    def venv(self) -> Path:
        return self.home / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def venv_marker(self) -> Path:
        return self.venv / "complete.json"

    @property
    def core(self) -> Path:
        return self.home / "core"

    @property
    def packages(self) -> Path:
        return self.core / "packages"

    @property
    def platforms(self) -> Path:
        return self.core / "platforms"

    @property
    def starter(self) -> Path:
        return self.core / STARTER.name

    @property
    def marker(self) -> Path:
        return self.home / "installed.json"

    @property
    def lock(self) -> Path:
        return self.home / "lock"


@cache
def pins() -> dict[str, str]:
    """Return the pinned distributions of the environment, name to version."""
    text = resources.files(__package__).joinpath(PINS_FILE).read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if line)


def fixtures_dir() -> Path:
    """
    Return the folder of the firmware fixtures: inside the installed package, or in the clone that
    this package runs from.

    Raises ToolchainMissing when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "firmware_fixtures", package.parents[1] / "firmware_fixtures"):
        if (candidate / "platform" / "platform.json").is_file():
            return candidate
    raise ToolchainMissing(
        "the firmware fixtures are not where this package was installed",
        remedy="Install aegis-esp from its wheel again, or run it from a whole clone.",
    )
