"""What the tests' own floor promises: nothing skipped under CI, nothing left running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT, run

PLAIN = f"[pytest]\npythonpath = {ROOT}/tests {ROOT}/benchmarks\n"


def pytest_on(folder: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "pytest.ini").write_text(PLAIN)
    (folder / "test_it.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    return run(argv, cwd=folder, env={"CI": "", "PYTEST_ADDOPTS": "", **env})


NEEDS = """
import pytest

@pytest.mark.requires("no-such-command")
def test_it():
    pass
"""


def test_what_is_missing_skips_a_test_at_a_desk(tmp: Path) -> None:
    done = pytest_on(tmp, NEEDS)
    assert done.returncode == 0, done.stdout
    assert "no-such-command is needed and not here" in done.stdout


@pytest.mark.parametrize("text", [NEEDS, "import pytest\ndef test_it(): pytest.skip('no')\n"])
def test_under_ci_a_skip_is_a_failure(tmp: Path, text: str) -> None:
    done = pytest_on(tmp, text, CI="true")
    assert done.returncode == 1, done.stdout
    assert "CI skips nothing" in done.stdout


def test_under_ci_a_module_that_skips_itself_is_a_failure(tmp: Path) -> None:
    done = pytest_on(tmp, "import pytest\npytest.importorskip('no_such_module')\n", CI="true")
    assert done.returncode not in (0, 5), done.stdout
    assert "CI skips nothing" in done.stdout


def test_a_process_that_a_test_leaves_is_named_and_killed(tmp: Path) -> None:
    text = "import subprocess\ndef test_it(): subprocess.Popen(['sleep', '3600'])\n"
    done = pytest_on(tmp, text)
    assert done.returncode == 1, done.stdout
    assert "left running: " in done.stdout
    assert "sleep 3600" in done.stdout


def test_no_setting_and_no_home_of_the_developer_reaches_a_test(tmp: Path) -> None:
    text = """
import os
from pathlib import Path

def test_it():
    assert not [name for name in os.environ if name.startswith(("AEGIS_", "PLATFORMIO_"))]
    assert "MCP_AUTH_SECRET" not in os.environ
    assert Path.home() != Path("/nonexistent/of/the/developer")
"""
    done = pytest_on(
        tmp,
        text,
        AEGIS_STATE_DIR="/nowhere",
        PLATFORMIO_CORE_DIR="/nowhere",
        MCP_AUTH_SECRET="secret",
        HOME="/nonexistent/of/the/developer",
    )
    assert done.returncode == 0, done.stdout


def test_a_run_that_is_terminated_leaves_no_folder(tmp: Path) -> None:
    text = """
import os, signal

def test_it(tmp, tmp_path):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
    (left := tmp / "t").mkdir()
    done = pytest_on(tmp, text, TMPDIR=str(left))
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert not list(left.iterdir())
