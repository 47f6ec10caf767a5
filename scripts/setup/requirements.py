"""
The requirements that pyproject.toml states, one on a line, as `pip install -r` reads them.

    python requirements.py runtime   every extra of `all`, and the dependency group `demo`
    python requirements.py develop   and the dependency group `dev`
    python requirements.py bench     and the dependency group `bench`

The build backend is among them, so that an editable install needs no network of its own. It
runs before anything is installed: the standard library only, and pip of any age can use it
(Debian 12's knows no dependency groups).
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GROUPS = {"runtime": ("demo",), "develop": ("dev",), "bench": ("dev", "bench")}
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def requirements(pyproject: dict[str, Any], kind: str) -> list[str]:
    """Return what `kind` needs, sorted, without repeats; an extra of our own is followed."""
    project = pyproject["project"]
    found = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    found += _extra(project, "all")
    for group in GROUPS[kind]:
        found += _group(pyproject["dependency-groups"], group)
    return sorted(set(found))


def _extra(project: dict[str, Any], name: str) -> Iterator[str]:
    own = re.compile(re.escape(project["name"]) + r"\[([\w, -]+)\]")
    for requirement in project["optional-dependencies"][name]:
        if followed := own.fullmatch(requirement):
            for extra in followed[1].split(","):
                yield from _extra(project, extra.strip())
        else:
            yield requirement


def _group(groups: dict[str, Any], name: str) -> Iterator[str]:
    for requirement in groups[name]:
        if isinstance(requirement, dict):
            yield from _group(groups, requirement["include-group"])
        else:
            yield requirement


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in GROUPS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(GROUPS)}")
    stated = tomllib.loads(PYPROJECT.read_text())
    sys.stdout.writelines(f"{line}\n" for line in requirements(stated, sys.argv[1]))
