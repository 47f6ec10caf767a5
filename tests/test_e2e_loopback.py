"""A host with no address but loopback: no ICE candidate exists there, and the user is told so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_platformio import platformio_home

__all__ = ["platformio_home"]

_INSIDE = """
import json, sys
from pathlib import Path
from stand import a_stand, copy_project

with a_stand(Path(sys.argv[1])) as stand:
    stand.agent()
    client = stand.client()
    project = copy_project("hello", stand.folder)
    done = client("build", str(project), "--target", "esp32p4", "--json")
    print(json.dumps({"code": done.code, "error": done.error}))
"""


@pytest.mark.requires("unshare", "ip", "root", "bwrap")
def test_a_host_with_loopback_only_gets_a_plain_message(platformio_home: Path) -> None:
    in_a_network_of_its_own = [
        "unshare",
        "--net",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "-",
    ]
    done = subprocess.run(
        [*in_a_network_of_its_own, sys.executable, "-c", _INSIDE, str(platformio_home)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["code"] == 5
    assert told["error"]["code"] == "link.no_candidates"
    assert "loopback" in told["error"]["remedy"]
