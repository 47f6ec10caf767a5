"""The real programs: an operator takes a job back while espctl shows its terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fixtures_platformio import platformio_home
from stand import Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = [pytest.mark.long, pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")]

_TICKS = """
import time

while True:
    print("tick", flush=True)
    time.sleep(0.05)
"""


def test_espctl_ends_with_the_reason_when_its_job_is_revoked_and_the_build_goes_on(
    platformio_home: Path, tmp_path: Path
) -> None:
    with a_stand(platformio_home) as stand:
        stand.agent()
        client = stand.client()
        building = client.start("streams", "build", str(_ticking(tmp_path)), "--target", "esp32p4")
        stand.until(lambda: "tick" in building.output(), "the terminal", building)
        (job,) = client("jobs", "--json").expect().json["jobs"]

        told = stand.admin("revoke", "job", job["id"], "--reason", "the bench is needed")

        assert f"revoked job {job['id']}, done at agent" in told.expect().out
        assert building.process.wait(60) == 4, building.output()
        assert ".revoked" in building.output()
        # Revoking ends connections, not work; and nobody gets in again.
        assert _state(stand, job["id"]) == "running"
        refused = client("attach", job["id"], "--json")
        assert (refused.code, refused.error["code"]) == (4, "grant.revoked")
        listed = stand.admin("revoke", "list", "--json").expect().json["revocations"]
        assert [(row["id"], row["state"]) for row in listed] == [(job["id"], "done")]


def _state(stand: Stand, job_id: str) -> str:
    return str(stand.admin("show-job", job_id, "--json").expect().json["state"])


def _ticking(tmp_path: Path) -> Path:
    """A project whose build prints for ever."""
    project = copy_project("hello", tmp_path)
    (project / "script.py").write_text(_TICKS)
    ini = project / "platformio.ini"
    text = re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:script.py", ini.read_text())
    ini.write_text(text)
    return project
