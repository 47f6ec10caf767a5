"""Source to firmware with the real programs: what arrives, what is shown, what ends how."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from aegis_protocol.manifest import Manifest
from aegis_protocol.signing import manifest_statement, unb64
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fixtures_platformio import platformio_home
from stand import BIN, Client, Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")

BUILD_UID = 65_100


@pytest.fixture(scope="module")
def house(platformio_home: Path) -> Iterator[tuple[Stand, Client]]:
    """One control, one agent, one client for the tests that break none of them."""
    with a_stand(platformio_home) as stand:
        stand.agent(slots=2)
        yield stand, stand.client()


def test_a_build_leaves_what_its_signed_manifest_says(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    stand, client = house
    project = copy_project("multi", tmp_path)
    built = client("build", str(project), "--target", "esp32p4", "--output", str(tmp_path / "out"))
    built.expect()
    out = tmp_path / "out"
    raw = (out / "manifest.json").read_bytes()
    manifest = Manifest.model_validate_json(raw)
    assert manifest.target == "esp32p4"
    assert [image.offset for image in manifest.images] == [0x2000, 0x8000, 0x10000]
    for image in manifest.images:
        assert sha256((out / image.path).read_bytes()).hexdigest() == image.sha256
    assert manifest.elf is not None
    assert sha256((out / manifest.elf).read_bytes()).hexdigest() == manifest.elf_sha256
    key = json.loads(stand.run("aegis-agent", "identity", "--json", **_agent_env(stand)).out)["key"]
    public = Ed25519PublicKey.from_public_bytes(unb64(key))
    public.verify((out / "manifest.sig").read_bytes(), manifest_statement(raw))


def test_a_second_build_sends_only_what_changed_and_starts_warm(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    stand, _ = house
    client = stand.client("warm")  # what another test uploaded is another identity's
    project = copy_project("multi", tmp_path)
    words = ("build", str(project), "--target", "esp32c3", "--json")
    first = client(*words).expect().json
    source = next((project / "src").glob("*.c*"))
    source.write_text(source.read_text() + "\n/* changed */\n")
    second = client(*words).expect().json
    assert first["warm"] is False
    assert second["warm"] is True
    assert second["sent_files"] == 1 < first["sent_files"]


def test_a_broken_build_names_both_errors_with_file_and_line(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    project = copy_project("broken", tmp_path)
    failed = client("build", str(project), "--target", "esp32p4", "--json").expect(3)
    errors = [row for row in failed.json["diagnostics"] if row["severity"] == "error"]
    assert {(row["file"], row["line"]) for row in errors} == {
        ("src/calibration.c", 6),
        ("src/temperature.c", 9),
    }
    assert failed.error["code"] == "build.failed"


def test_a_project_without_platformio_ini_is_named_at_once(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "main.c").write_text("int main(void) { return 0; }\n")
    failed = client("build", str(tmp_path / "empty"), "--target", "esp32p4", "--json")
    assert failed.code != 0
    assert failed.error["code"] == "project.not_platformio"
    assert failed.error["remedy"]


def test_a_target_that_no_agent_has_waits_with_its_reasons_and_then_ends(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    project = copy_project("hello", tmp_path)
    failed = client("build", str(project), "--target", "esp32h2", "--wait", "1", "--json")
    assert failed.code != 0
    assert failed.error["code"] == "job.wait_expired"
    assert [reason["code"] for reason in failed.error["facts"]["reasons"]] == ["target.missing"]


def test_a_target_that_nobody_knows_is_refused_at_once(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    failed = client("build", str(copy_project("hello", tmp_path)), "--target", "esp99", "--json")
    assert failed.code != 0
    assert failed.error["code"] == "target.unknown"


def test_a_viewer_may_not_build(house: tuple[Stand, Client], tmp_path: Path) -> None:
    stand, _ = house
    viewer = stand.client("viewer", role="viewer")
    project = copy_project("hello", tmp_path)
    failed = viewer("build", str(project), "--target", "esp32p4", "--json").expect(4)
    assert failed.error["code"] in ("role.insufficient", "action.not_granted")


def test_a_download_comes_later_and_only_to_its_owner(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    stand, client = house
    project = copy_project("hello", tmp_path)
    built = client("build", str(project), "--target", "esp32c6", "--json").expect().json
    task = built["task_id"]
    client("download", task, "--output", str(tmp_path / "later"), "--json").expect()
    manifest = Manifest.model_validate_json((tmp_path / "later" / "manifest.json").read_bytes())
    assert manifest.target == "esp32c6"
    other = stand.client("other")
    refused = other("download", task, "--agent", "agent", "--output", str(tmp_path / "x"), "--json")
    assert refused.code != 0
    assert refused.error["code"] == "task.not_found"
    assert not (tmp_path / "x" / "manifest.json").exists()


def test_a_build_that_was_left_is_watched_from_its_beginning_by_whoever_comes_back(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    project = copy_project("hello", tmp_path)
    words = ("build", str(project), "--target", "esp32p4", "--detach", "--json")
    job = client(*words).expect().json["job_id"]
    attached = client("attach", job, "--output", str(tmp_path / "out")).expect()
    assert "Processing esp32p4" in attached.out
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_gcc_error_has_its_colours_and_a_resize_reaches_the_build(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    _, client = house
    project = copy_project("broken", tmp_path)
    (project / "resized.py").write_text(_WAITS_FOR_RESIZE)
    ini = project / "platformio.ini"
    ini.write_text(
        re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:resized.py", ini.read_text())
    )
    with _Terminal(
        client, "build", str(project), "--target", "esp32p4", rows=30, cols=90
    ) as screen:
        screen.until(lambda text: "size now 30 90" in text)
        screen.resize(rows=44, cols=111)
        screen.until(lambda text: "resized to 44 111" in text)
        assert screen.ended() == 3
    assert re.search(r"\x1b\[[0-9;]*31m[^\n]*error", screen.text)


def test_ctrl_c_cancels_the_build_and_leaves_no_process_on_the_agent(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    stand, client = house
    project = _endless(tmp_path)
    building = client.start("ctrl-c", "build", str(project), "--target", "esp32p4", "--json")
    stand.until(lambda: _sleepers() != [], "the build", building)
    building.process.send_signal(signal.SIGINT)
    assert building.process.wait(15) == 130
    _until(lambda: _sleepers() == [], within_s=5)
    jobs = client("jobs", "--json").expect().json["jobs"]
    assert jobs[0]["state"] == "canceled"


def test_an_agent_that_is_killed_ends_espctl_with_a_named_error(
    platformio_home: Path, tmp_path: Path
) -> None:
    with a_stand(platformio_home) as stand:
        agent = stand.agent()
        client = stand.client()
        building = client.start(
            "killed", "build", str(_endless(tmp_path)), "--target", "esp32p4", "--json"
        )
        stand.until(lambda: _sleepers() != [], "the build", building)
        agent.kill()
        killed_at = time.monotonic()
        assert building.process.wait(20) == 5
        assert time.monotonic() - killed_at < 10
        assert '"agent.gone"' in building.output()
        assert '"remedy"' in building.output()
        _until(lambda: _sleepers() == [], within_s=5)


def test_a_control_that_is_killed_does_not_disturb_a_build(
    platformio_home: Path, tmp_path: Path
) -> None:
    with a_stand(platformio_home) as stand:
        stand.agent()
        client = stand.client()
        project = copy_project("hello", tmp_path)
        go_on = tmp_path / "unused"
        _script(project, _SLOW)
        building = client.start(
            "orphan",
            *("build", str(project), "--target", "esp32p4", "--output", str(go_on), "--json"),
        )
        stand.until(lambda: _sleepers() != [], "the build", building)
        stand.programs[0].kill()
        assert building.process.wait(60) == 0, building.output()
        assert (go_on / "manifest.json").exists()


_WAITS_FOR_RESIZE = """
import signal, subprocess, time

Import("env")


def size():
    with open("/dev/tty") as terminal:
        done = subprocess.run(["stty", "size"], stdin=terminal, capture_output=True, text=True)
    return done.stdout.strip()


changed = []
signal.signal(signal.SIGWINCH, lambda *_: changed.append(size()))
print("size now", size(), flush=True)
ends = time.monotonic() + 20
while not changed and time.monotonic() < ends:
    time.sleep(0.05)
print("resized to", changed[0] if changed else "nothing", flush=True)
"""
_ENDLESS = "import subprocess\nsubprocess.run(['sleep', '86399'])\n"
_SLOW = "import subprocess\nsubprocess.run(['sleep', '4.86399'])\n"


def _endless(tmp_path: Path) -> Path:
    project = copy_project("hello", tmp_path)
    _script(project, _ENDLESS)
    return project


def _script(project: Path, text: str) -> None:
    (project / "script.py").write_text(text)
    ini = project / "platformio.ini"
    ini.write_text(
        re.sub(r"(?m)^(\[env:esp32p4\])$", r"\1\nextra_scripts = pre:script.py", ini.read_text())
    )


def _sleepers() -> list[int]:
    """The processes of the builds above: nothing else on a machine sleeps for these times."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[:1] == ["sleep"] and words[1:2] in (["86399"], ["4.86399"]):
            found.append(process.pid)
    return found


def _until(fact: Callable[[], bool], *, within_s: float) -> None:
    ends = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.05)


def _agent_env(stand: Stand) -> dict[str, str]:
    return {"AEGIS_STATE_DIR": str(stand.folder / "agent"), "AEGIS_AGENT_NAME": "agent"}


class _Terminal:
    """espctl on a real terminal of its own."""

    def __init__(self, client: Client, *words: str, rows: int, cols: int) -> None:
        self._client, self._words = client, words
        self._size = (rows, cols)
        self.text = ""

    def __enter__(self) -> _Terminal:
        self._ours, theirs = pty.openpty()
        self.resize(rows=self._size[0], cols=self._size[1], tell=False)
        env = self._client.stand.env(AEGIS_STORE=str(self._client.store), TERM="xterm-256color")
        self._process = subprocess.Popen(
            [str(BIN / "espctl"), *self._words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={key: value for key, value in env.items() if key != "COLUMNS"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        os.close(self._ours)

    def resize(self, *, rows: int, cols: int, tell: bool = True) -> None:
        """Set the size; the kernel sends SIGWINCH to the foreground process."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def until(self, fact: Callable[[str], bool], *, within_s: float = 40) -> None:
        ends = time.monotonic() + within_s
        while not fact(self.text):
            assert time.monotonic() < ends, self.text[-3000:]
            if not self._read():
                raise AssertionError(self.text[-3000:])

    def ended(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            continue
        return self._process.wait(30)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 0.2)
        if not ready:
            return True
        try:
            data = os.read(self._ours, 65_536)
        except OSError:
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
