"""What happens to a client on its way, with the real programs: each ends as docs/links.md says."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aegis_client.exit_codes import ExitCode
from fixtures_platformio import platformio_home
from other_host import OtherHost
from stand import BIN, EVERYWHERE, Client, Program, Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc"),
]

_COUNTS = """
import time
for number in range({ticks}):
    print("tick", number, flush=True)
    time.sleep(0.1)
"""


@dataclass
class Building:
    """An `espctl build` that runs, of a project that counts up to `ticks` first."""

    client: Client
    program: Program
    out: Path
    ticks: int

    def reached(self, tick: int) -> bool:
        return f"tick {tick}\n" in self.program.output().replace("\r", "")

    def said(self, words: str, times: int = 1) -> bool:
        return self.program.output().count(words) >= times

    def succeeded(self) -> None:
        """Wait for the end: every line came, and came once, and the firmware is there."""
        assert self.program.process.wait(120) == 0, self.program.output()
        assert counted(self.program.output()) == list(range(self.ticks))
        assert (self.out / "manifest.json").exists()


def counted(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"tick (\d+)\b", text)]


@pytest.fixture(scope="module")
def house(platformio_home: Path) -> Iterator[Stand]:
    with a_stand(platformio_home, listen=EVERYWHERE, ESPCTL_ALLOW_INSECURE="1") as stand:
        stand.agent(slots=4)
        yield stand


def build(
    stand: Stand, folder: Path, name: str, ticks: int, host: OtherHost | None = None
) -> Building:
    """Start it, on another host or here, and wait until it counts."""
    project = copy_project("hello", folder / name)
    (project / "counts.py").write_text(_COUNTS.format(ticks=ticks))
    ini = project / "platformio.ini"
    ini.write_text(
        re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:counts.py", ini.read_text())
    )
    client = stand.client(name)
    out = folder / name / "out"
    words = ("build", str(project), "--target", "esp32p4", "--output", str(out))
    if host is None:
        program = client.start(f"{name}-build", *words)
    else:
        program = start_at(host, client, f"{name}-build", *words)
    building = Building(client, program, out, ticks)
    stand.until(lambda: building.reached(10), "the build", program)
    return building


def start_at(host: OtherHost, client: Client, name: str, *words: str) -> Program:
    return client.stand.start(
        name,
        *host.command(str(BIN / "espctl"), *words),
        AEGIS_STORE=str(client.store),
        MCP_AUTH_SECRET=client.stand.key("flasher"),
        ESPCTL_URL=f"http://{host.server}:{client.stand.port}",
    )


@pytest.mark.requires("root", "nft")
def test_a_build_goes_on_when_datagrams_are_blocked_and_when_the_network_changes(
    house: Stand, tmp_path: Path
) -> None:
    with OtherHost.plugged_in() as host:
        building = build(house, tmp_path, "moving", 300, host)
        host.block_udp()
        house.until(lambda: building.said("connecting again"), "the loss", building.program)
        host.let_udp_pass()
        seen = counted(building.program.output())[-1]
        house.until(lambda: building.reached(seen + 1), "the first way back", building.program)
        host.move()
        house.until(lambda: building.said("connecting again", 2), "the move", building.program)
        building.succeeded()


@pytest.mark.requires("root", "nft")
def test_one_client_sleeps_and_another_is_cut_off_for_good(house: Stand, tmp_path: Path) -> None:
    with OtherHost.plugged_in() as host:
        cut_off = build(house, tmp_path, "cut-off", 600, host)
        sleeping = build(house, tmp_path, "sleeping", 300)
        host.block_udp()
        cut_off_at = time.monotonic()
        sleeping.program.process.send_signal(signal.SIGSTOP)
        time.sleep(20)
        sleeping.program.process.send_signal(signal.SIGCONT)
        assert cut_off.program.process.wait(90) == ExitCode.UNREACHABLE, cut_off.program.output()
        # Silence is noticed within 8 s; then come three tries of 10 s, 2 s apart.
        assert time.monotonic() - cut_off_at < 60
        last_words = cut_off.program.output().strip().splitlines()[-2:]
        assert re.search(r"failed at ice: .*\(link\.(not_opened|unreachable)\)", last_words[0])
        assert "TURN" in last_words[1]
        sleeping.succeeded()
        assert sleeping.said("connecting again")


def test_what_a_killed_client_had_begun_is_finished_and_can_be_fetched(
    house: Stand, tmp_path: Path
) -> None:
    building = build(house, tmp_path, "killed", 60)
    building.program.process.kill()
    out = tmp_path / "fetched"
    fetched = building.client("attach", "--output", str(out)).expect()
    assert counted(fetched.raw) == list(range(60))
    assert (out / "manifest.json").exists()


def test_a_killed_agent_is_told_soon(platformio_home: Path, tmp_path: Path) -> None:
    with a_stand(platformio_home) as stand:
        agent = stand.agent()
        building = build(stand, tmp_path, "bereft", 600)
        agent.kill()
        began = time.monotonic()
        assert building.program.process.wait(60) == ExitCode.UNREACHABLE, building.program.output()
        # Control sees at once that its link is down; 8 s later it is not waited for any more.
        assert time.monotonic() - began < 25
        assert "(agent.gone)" in building.program.output()
