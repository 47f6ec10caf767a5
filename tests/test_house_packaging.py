"""What the distribution says of itself: pins, licences, and what a wheel has in it."""

from __future__ import annotations

import ast
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from house import ROOT, copy_clone, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
GPL_LIBRARIES = {"esptool", "unicorn"}


def stated(kind: str) -> list[Requirement]:
    done = run([sys.executable, "scripts/setup/requirements.py", kind], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [Requirement(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["runtime", "develop", "bench"])
def test_every_requirement_is_pinned_to_a_version_that_it_allows(kind: str) -> None:
    for requirement in stated(kind):
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), requirement


def test_everything_that_is_installed_for_us_is_pinned() -> None:
    open_ends = [requirement.name for requirement in stated("develop")]
    seen: set[str] = set()
    while open_ends:
        name = canonicalize_name(open_ends.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        assert name in PINS, f"{name} is not in constraints.txt"
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                open_ends.append(need.name)


def test_develop_has_all_that_runtime_has() -> None:
    assert {str(one) for one in stated("runtime")} < {str(one) for one in stated("develop")}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_what_imports_a_library_under_the_gpl_is_marked_as_under_it_too() -> None:
    ours = [path for part in ("agent", "tests") for path in (ROOT / part).rglob("*.py")]
    importing = [path for path in ours if imports(path) & GPL_LIBRARIES]
    assert importing
    for path in importing:
        assert path.read_text().startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n"), path
    licence = (ROOT / "LICENSES/GPL-2.0-or-later.txt").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in licence


def test_the_licence_is_stated_once_and_its_text_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND GPL-2.0-or-later"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which somebody has worked: builds and caches lie around."""
    clone = copy_clone(tmp_path_factory.mktemp("wheel") / "clone")
    for name in ("firmware_fixtures/hello/.pio/build/old.o", "agent/__pycache__/old.pyc"):
        (clone / name).parent.mkdir(parents=True)
        (clone / name).write_bytes(b"old")
    return clone


@pytest.fixture(scope="module")
def wheel(clone: Path) -> set[str]:
    """The names in the wheel that was built from `clone`."""
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=clone)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((clone / "dist").glob("aegis_esp-*.whl"))) as archive:
        return set(archive.namelist())


def test_a_wheel_has_the_five_packages_and_the_platform_that_builds_firmware(
    wheel: set[str],
) -> None:
    for package in ("protocol", "links", "control", "agent", "client"):
        assert f"aegis_{package}/__init__.py" in wheel
        assert f"aegis_{package}/py.typed" in wheel
    assert "aegis_agent/firmware_fixtures/platform/platform.json" in wheel
    assert "aegis_agent/firmware_fixtures/hello/platformio.ini" in wheel
    assert any(name.endswith("licenses/LICENSES/GPL-2.0-or-later.txt") for name in wheel)


def test_a_wheel_has_each_of_our_files_and_nothing_that_a_build_left(
    clone: Path, wheel: set[str]
) -> None:
    left = ("__pycache__", ".pio")
    sources = {
        str(path.relative_to(clone / part))
        for part in ("protocol", "links", "control", "agent", "client")
        for path in (clone / part).rglob("*")
        if path.is_file() and not set(left) & set(path.parts)
    }
    fixtures = {
        f"aegis_agent/{path.relative_to(clone)}"
        for path in (clone / "firmware_fixtures").rglob("*")
        if path.is_file() and not set(left) & set(path.parts)
    }
    assert {name for name in wheel if ".dist-info/" not in name} == sources | fixtures
