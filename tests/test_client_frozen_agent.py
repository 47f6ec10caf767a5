"""An agent that stands still in the middle of a build, with the real programs: nothing is lost."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from fixtures_platformio import platformio_home
from stand import a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = [pytest.mark.long, pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")]

_COUNTS = """
import time
for number in range({ticks}):
    print("tick", number, flush=True)
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("frozen_s", "ticks"), [(8, 250), (20, 400)])
def test_a_build_is_shown_whole_although_its_agent_was_frozen(
    platformio_home: Path, tmp_path: Path, frozen_s: int, ticks: int
) -> None:
    with a_stand(platformio_home) as stand:
        agent = stand.agent()
        client = stand.client()
        project = copy_project("hello", tmp_path)
        (project / "counts.py").write_text(_COUNTS.format(ticks=ticks))
        ini = project / "platformio.ini"
        ini.write_text(
            re.sub(
                r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:counts.py", ini.read_text()
            )
        )
        out = tmp_path / "out"
        words = ("build", str(project), "--target", "esp32p4", "--output", str(out))
        building = client.start("frozen", *words)
        stand.until(lambda: "tick 20" in building.output(), "the build", building)
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(frozen_s)
        agent.process.send_signal(signal.SIGCONT)
        assert building.process.wait(90) == 0, building.output()
        text = building.output()
        seen = [int(number) for number in re.findall(r"tick (\d+)\b", text)]
        assert seen == list(range(ticks))
        assert "connecting again" in text
        assert (out / "manifest.json").exists()
