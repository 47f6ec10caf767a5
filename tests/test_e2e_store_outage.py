"""The real programs: PostgreSQL is gone for a minute while one build runs and another waits."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from databases import a_server
from fixtures_platformio import platformio_home
from other_host import a_network_of_its_own
from stand import Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.requires("root", "ip", "bwrap", "riscv64-unknown-elf-gcc"),
    pytest.mark.timeout(400),
]

GONE_S = 60.0

_TICKS = """
import time

while True:
    print("tick", flush=True)
    time.sleep(0.05)
"""


def test_a_minute_without_the_store_stops_no_terminal_and_loses_no_job_that_waits(
    platformio_home: Path, tmp_path: Path
) -> None:
    with (
        a_network_of_its_own(),  # a link that breaks could not be made again meanwhile
        a_server() as server,
        a_stand(platformio_home, AEGIS_DATABASE_URL=server.url()) as stand,
    ):
        stand.agent()
        client = stand.client()
        running = client.start("runs", "build", str(_ticking(tmp_path)), "--target", "esp32p4")
        stand.until(lambda: "tick" in running.output(), "the terminal", running)
        project = str(copy_project("hello", tmp_path))
        waiting = client.start("waits", "build", project, "--target", "esp32p4", "--wait", "600")
        stand.until(lambda: "slots.full" in _reasons(stand), "the second job", waiting)
        jobs = _jobs(stand)

        server.stop()
        gone_at = time.monotonic()
        stand.until(lambda: _health(stand) == (503, "error"), "the word of /health")
        seen = running.output().count("tick")
        while time.monotonic() - gone_at < GONE_S:
            time.sleep(5)
            before, seen = seen, running.output().count("tick")
            assert seen > before, f"the terminal stood still: {running.output()[-500:]}"
            assert _health(stand) == (503, "error")
        server.start()

        stand.until(lambda: _health(stand) == (200, "ok"), "the word of /health")
        stand.until(lambda: stand.agent_row("agent")["state"] == "online", "the agent's link")
        assert _jobs(stand) == jobs, "nothing that was acknowledged is lost, or began anew"
        (job_id,) = (job_id for job_id, (state, _) in jobs.items() if state == "running")
        client("cancel", job_id).expect()
        assert waiting.process.wait(90) == 0, waiting.output()
        assert (_jobs(stand).keys(), running.process.wait(30)) == (jobs.keys(), 9)


def _ticking(tmp_path: Path) -> Path:
    """A project whose build prints for ever."""
    project = copy_project("hello", tmp_path / "ticking")
    (project / "script.py").write_text(_TICKS)
    ini = project / "platformio.ini"
    text = re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:script.py", ini.read_text())
    ini.write_text(text)
    return project


def _jobs(stand: Stand) -> dict[str, tuple[str, int]]:
    """Each job's state and attempt."""
    rows = stand.admin("list-jobs", "--json").expect().json["jobs"]
    return {row["id"]: (row["state"], row["attempt"]) for row in rows}


def _reasons(stand: Stand) -> str:
    rows = stand.admin("list-jobs", "--json").expect().json["jobs"]
    return " ".join(reason["code"] for row in rows for reason in row["reasons"])


def _health(stand: Stand) -> tuple[int, str]:
    try:
        with urlopen(f"{stand.url}/health", timeout=30) as answer:  # noqa: S310 - our own
            return answer.status, json.load(answer)["store"]
    except HTTPError as exc:
        return exc.code, json.load(exc)["store"]
