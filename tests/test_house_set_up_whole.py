"""Set-up as it is: a copy of this clone, a network or pip's cache, an environment that works."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from house import copy_clone, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

NO_OP_S = 0.3


@pytest.mark.parametrize("way", ["pip", "uv"])
def test_set_up_makes_a_working_environment_once_and_clean_removes_it(tmp: Path, way: str) -> None:
    clone = copy_clone(tmp / "clone")
    before = {path.relative_to(clone) for path in clone.rglob("*")}
    (tmp / "bin").mkdir()
    (tmp / "bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    env = {"AEGIS_SETUP_BY": way, "PATH": f"{tmp / 'bin'}:{os.environ['PATH']}"}

    made = run(["scripts/setup.sh", "lint"], cwd=clone, env=env, limit_s=500)
    assert made.returncode == 0, made.stderr
    assert ("uv's downloads" in made.stderr) == (way == "uv")
    times = json.loads((clone / "build/setup-times.json").read_text())
    assert times["setup_s"] > 0
    check = "import pytest, aegis_client, aegis_links, aegis_agent as one; print(one.__file__)"
    imported = run([".venv/bin/python", "-c", check], cwd=clone)
    assert imported.stdout.strip() == str(clone / "agent/aegis_agent/__init__.py")

    durations = []
    for _ in range(3):
        began = time.monotonic()
        again = run(["scripts/setup.sh", "lint"], cwd=clone, env=env)
        durations.append(time.monotonic() - began)
        assert again.stderr == ""
    assert min(durations) < NO_OP_S

    cleaned = run(["make", "clean"], cwd=clone)
    assert cleaned.returncode == 0, cleaned.stderr
    assert {path.relative_to(clone) for path in clone.rglob("*")} == before
