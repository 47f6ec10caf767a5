"""The build's terminal: its size, its colours, typing, and how it is ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from aegis_agent.toolchains import Toolchains
from aegis_protocol.failures.build import BuildFailed, BuildSilent, BuildTimedOut
from build_stand import BuildStand, Progress, Screen, alive, fixture, with_script
from fixtures_platformio import platformio_home
from waiting import until

__all__ = ["platformio_home"]
pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")


@pytest.fixture
async def stand(tmp: Path, platformio_home: Path) -> AsyncIterator[BuildStand]:
    yield BuildStand(tmp, await Toolchains.detect(platformio_home=platformio_home), silence_s=20)


WATCH_SIZE = """
import os, signal, subprocess, sys, time
def size():
    return subprocess.run(["stty", "size"], stdin=open("/dev/tty"), capture_output=True,
                          text=True).stdout.strip()
changed = []
signal.signal(signal.SIGWINCH, lambda *_: changed.append(1))
sys.stderr.write("SIZE " + size() + "\\n")
ends = time.monotonic() + 20
while not changed and time.monotonic() < ends:
    time.sleep(0.01)
sys.stderr.write("THEN %d %s\\n" % (len(changed), size()))
"""


async def test_a_resize_reaches_what_runs_in_the_build(stand: BuildStand) -> None:
    screen = Screen()
    build = await stand.prepare(with_script(fixture("hello"), WATCH_SIZE))
    running = asyncio.create_task(build.run(screen, Progress()))
    await until(lambda: "SIZE" in screen.text, within_s=20)
    assert "SIZE 30 100" in screen.text
    build.resize(132, 43)
    outcome = await running
    assert "THEN 1 43 132" in screen.text
    assert outcome.error is None


async def test_a_resize_before_the_start_is_the_size_at_the_start(stand: BuildStand) -> None:
    screen = Screen()
    script = "import subprocess\nsubprocess.run('stty size < /dev/tty >&2', shell=True)\n"
    build = await stand.prepare(with_script(fixture("hello"), script))
    build.resize(77, 11)
    await build.run(screen, Progress())
    assert "11 77" in screen.text


async def test_what_is_typed_is_read_by_the_build(stand: BuildStand) -> None:
    screen = Screen()
    script = """
import sys
tty = open("/dev/tty")
sys.stderr.write("NAME? \\n")
sys.stderr.write("HELLO " + tty.readline())
"""
    build = await stand.prepare(with_script(fixture("hello"), script))
    build.type(b"too early\n")
    running = asyncio.create_task(build.run(screen, Progress()))
    await until(lambda: "NAME?" in screen.text, within_s=20)
    build.type(b"world\n")
    outcome = await running
    build.type(b"too late\n")
    assert "HELLO world" in screen.text
    assert outcome.error is None


async def test_a_typed_interrupt_ends_the_build(stand: BuildStand) -> None:
    screen = Screen()
    script = "import sys, time\nsys.stderr.write('WAITING\\n')\ntime.sleep(91)\n"
    build = await stand.prepare(with_script(fixture("hello"), script))
    running = asyncio.create_task(build.run(screen, Progress()))
    await until(lambda: "WAITING" in screen.text, within_s=20)
    build.type(b"\x03")
    outcome = await running
    assert isinstance(outcome.error, BuildFailed)
    assert outcome.result.duration_s < 20


async def test_an_error_has_its_colours_unless_the_viewer_has_none(stand: BuildStand) -> None:
    colored, plain = Screen(), Screen()
    await stand.build(fixture("broken"), screen=colored)
    await stand.build(fixture("broken"), screen=plain, color=False)
    assert re.search(r"\x1b\[[0-9;]*31m.*error: ", colored.text)
    assert "\x1b" not in plain.text
    assert "src/temperature.c:9:12: error: 'reading' undeclared" in plain.text


async def test_a_canceled_build_leaves_no_compiler_and_keeps_its_log(stand: BuildStand) -> None:
    screen = Screen()
    script = """
import subprocess, sys
subprocess.Popen(["setsid", "sleep", "92"])
sys.stderr.write("BUSY\\n")
subprocess.run(["riscv64-unknown-elf-gcc", "-x", "c", "-c", "-o", "/tmp/x.o", "-"])
"""
    build = await stand.prepare(with_script(fixture("hello"), script), task_id="t1")
    running = asyncio.create_task(build.run(screen, Progress()))
    await until(lambda: alive("cc1"), within_s=20)
    assert alive("sleep 92")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not alive()
    assert [one.name for one in stand.results.artifacts("alice", "t1")] == [
        "build.json", "build.log", "diagnostics.json",
    ]  # fmt: skip
    path, _ = stand.results.path("alice", "t1", "build.log")
    assert b"BUSY" in path.read_bytes()
    assert (await stand.build(fixture("hello"))).error is None


async def test_a_build_may_be_canceled_at_any_moment(stand: BuildStand) -> None:
    for turns in (0, 1, 2, 4, 8, 16, 40, 80):
        build = await stand.prepare(fixture("hello"))
        running = asyncio.create_task(build.run(Screen(), Progress()))
        for _ in range(turns):
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        assert not alive()
    assert (await stand.build(fixture("hello"))).error is None


async def test_a_build_that_takes_too_long_is_killed(stand: BuildStand) -> None:
    script = "import time\nwhile True:\n    print('on and on', flush=True)\n    time.sleep(0.1)\n"
    files = with_script(fixture("hello"), script)
    outcome = await stand.build(files, timeout_s=2, task_id="t1")
    assert isinstance(outcome.error, BuildTimedOut)
    assert 2 <= outcome.result.duration_s < 10
    assert stand.results.artifacts("alice", "t1")
    assert not alive()


async def test_a_build_that_says_nothing_for_too_long_is_killed(
    tmp: Path, platformio_home: Path
) -> None:
    toolchains = await Toolchains.detect(platformio_home=platformio_home)
    stand = BuildStand(tmp, toolchains, silence_s=1.5)
    outcome = await stand.build(with_script(fixture("hello"), "import time\ntime.sleep(93)\n"))
    assert isinstance(outcome.error, BuildSilent)
    assert outcome.result.duration_s < 15
    assert not alive()


async def test_progress_comes_at_most_ten_times_a_second(stand: BuildStand) -> None:
    times: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()
    build = await stand.prepare(fixture("multi"))
    await build.run(Screen(), lambda phase, *_, **__: times.append((phase, loop.time())))
    for (phase, before), (then, after) in pairwise(times):
        assert phase != then or after - before >= 0.1
