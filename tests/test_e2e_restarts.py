"""
The real programs: control is killed, or the agent's link to it cut, in the middle of a build, and
the way between espctl and agent as well. The job goes on, and its terminal by offset.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aegis_protocol.manifest import Manifest
from cut_wire import ThreadedWire
from fixtures_platformio import platformio_home
from other_host import OtherHost
from stand import BIN, EVERYWHERE, Program, Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.requires("root", "nft", "bwrap", "riscv64-unknown-elf-gcc"),
]

# No two lines are alike; two minutes of them, unless the file `enough` is there before.
_COUNTS = """
import hashlib, os, time

for number in range(2400):
    if os.path.exists("/project/enough"):
        break
    print("tick", number, hashlib.sha512(str(number).encode()).hexdigest() * 4, flush=True)
    time.sleep(0.05)
"""
_TO_A_FILE = 'exec "$@" > "$0"'


@dataclass
class Building:
    """
    An `espctl build` on another host, of a project that prints until it is told to end.

    program  whose output is espctl's notes
    shown    the file that its stdout is
    """

    stand: Stand
    program: Program
    shown: Path
    out: Path

    @property
    def ticks(self) -> list[int]:
        return [int(number) for number in re.findall(rb"tick (\d+) ", self.shown.read_bytes())]

    def said(self, words: str) -> bool:
        return words in self.program.output()

    def until_said(self, words: str) -> None:
        self.stand.until(lambda: self.said(words), f"{words!r}", self.program)

    def until_more_ticks(self) -> None:
        seen = len(self.ticks)
        self.stand.until(lambda: len(self.ticks) > seen + 10, "more of the terminal", self.program)

    def finish(self) -> None:
        """Let the build come to its end, and espctl with it."""
        (workspace,) = self._of_agent.glob("source/workspaces/*/*/project")
        (workspace / "enough").touch()
        assert self.program.process.wait(90) == 0, self.program.output()

    def job(self) -> dict[str, Any]:
        """The one job there is."""
        (job,) = self.stand.admin("list-jobs", "--json").expect().json["jobs"]
        assert isinstance(job, dict)
        return job

    def came_whole(self) -> None:
        """The terminal is what the agent recorded, and the files are those that it made."""
        (result,) = self._of_agent.glob("results/*/*/result.json")
        artifacts = json.loads(result.read_bytes())["artifacts"]
        made = {artifact["name"]: artifact["sha256"] for artifact in artifacts}
        fetched = {path.name: sha256(path.read_bytes()).hexdigest() for path in self.out.iterdir()}
        assert fetched == made
        manifest = Manifest.model_validate_json((self.out / "manifest.json").read_bytes())
        assert manifest.images
        assert all(fetched[image.path] == image.sha256 for image in manifest.images)
        recorded = (result.parent / "files/build.log").read_bytes()
        shown = self.shown.read_bytes()
        assert shown[: len(recorded)] == recorded
        assert shown[len(recorded) :].startswith(b"offset "), "after it, the table of the images"
        assert self.ticks == list(range(len(self.ticks)))

    @property
    def _of_agent(self) -> Path:
        return self.stand.folder / "agent"


def a_building(stand: Stand, folder: Path, host: OtherHost) -> Building:
    """Start it, and wait until its terminal is seen."""
    project = copy_project("hello", folder)
    (project / "counts.py").write_text(_COUNTS)
    ini = project / "platformio.ini"
    ini.write_text(
        re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:counts.py", ini.read_text())
    )
    out, shown = folder / "out", folder / "shown"
    build = ("build", str(project), "--target", "esp32p4", "--output", str(out))
    shown.touch()
    program = stand.start(
        "build",
        *host.command("/bin/sh", "-c", _TO_A_FILE, str(shown), str(BIN / "espctl"), *build),
        AEGIS_STORE=str(folder / "store"),
        MCP_AUTH_SECRET=stand.key("flasher"),
        ESPCTL_URL=f"http://{host.server}:{stand.port}",
    )
    building = Building(stand, program, shown, out)
    building.until_more_ticks()
    return building


def test_a_build_outlives_its_control_and_is_come_back_to_with_a_grant_of_the_next_one(
    platformio_home: Path, tmp_path: Path
) -> None:
    with (
        a_stand(platformio_home, listen=EVERYWHERE, ESPCTL_ALLOW_INSECURE="1") as stand,
        OtherHost.plugged_in() as host,
    ):
        agent = stand.agent()
        building = a_building(stand, tmp_path, host)
        before = building.job()

        stand.programs[0].kill()
        building.until_more_ticks()
        stand.control()
        stand.until(lambda: agent.output().count("link.opened") >= 2, "the agent's link", agent)
        assert not building.said("connecting again")
        host.move()
        building.until_said("connecting again")
        building.until_more_ticks()
        during = building.job()
        building.finish()

        assert [job["state"] for job in (before, during)] == ["running", "running"]
        after = building.job()
        assert after["state"] == "succeeded"
        assert {(job["id"], job["attempt"]) for job in (before, during, after)} == {
            (before["id"], 1)
        }
        assert agent.output().count("session.opened") >= 2
        building.came_whole()


def test_a_build_is_come_back_to_when_both_links_of_its_agent_were_cut(
    platformio_home: Path, tmp_path: Path
) -> None:
    with (
        ThreadedWire.laid() as wire,
        a_stand(
            platformio_home,
            listen=EVERYWHERE,
            ESPCTL_ALLOW_INSECURE="1",
            CONTROL_BASE_URL=wire.url,
            CONTROL_PUBLIC_BASE_URL=wire.url,
        ) as stand,
        OtherHost.plugged_in() as host,
    ):
        wire.lead_to(stand.port)
        agent = stand.agent()
        building = a_building(stand, tmp_path, host)
        before = building.job()

        host.block_udp()
        building.until_said("connecting again")
        wire.cut()
        stand.until(lambda: stand.agent_row("agent")["state"] == "disconnected", "the loss", agent)
        wire.mend()
        stand.until(lambda: stand.agent_row("agent")["state"] == "online", "the link", agent)
        # So that nothing of what was begun before the cut is what leads back.
        building.until_said("trying again")
        host.let_udp_pass()
        building.until_more_ticks()
        during = building.job()
        building.finish()

        assert [job["state"] for job in (before, during)] == ["running", "running"]
        after = building.job()
        assert after["state"] == "succeeded"
        assert {(job["id"], job["attempt"]) for job in (before, during, after)} == {
            (before["id"], 1)
        }
        assert agent.output().count("link.opened") >= 2
        building.came_whole()
