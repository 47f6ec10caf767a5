"""However it ends, nothing of a sandbox is left: canceled, killed, or with the agent killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aegis_agent.sandbox import SandboxSpec, uninterrupted
from build_stand import UID_BASE, alive, as_ordinary_user, our_sandbox
from waiting import until

pytestmark = pytest.mark.requires("bwrap")
ENV = {"PATH": "/usr/bin:/bin"}
TREE = ("sh", "-c", "setsid sleep {0} & sleep {0} & (sleep {0}; true) & wait")
AN_AGENT = """
import asyncio, sys
from aegis_agent.sandbox import Sandbox, SandboxSpec
argv = ("sh", "-c", "setsid sleep 83 & sleep 83 & echo; wait")
spec = SandboxSpec(argv=argv, env={"PATH": "/usr/bin:/bin"}, slot=3)
asyncio.run(Sandbox(uid_base=int(sys.argv[1])).capture(spec, deadline_s=60))
"""
A_BUILD = """
import asyncio, sys
from pathlib import Path
from aegis_agent.sandbox import Mount, Sandbox, SandboxSpec
project = Path(sys.argv[1])
spec = SandboxSpec(
    argv=("sh", "-c", "echo > /project/made; id -u; cat /etc/shadow; cat /proc/self/oom_score_adj"),
    env={"PATH": "/usr/bin:/bin"},
    slot=0,
    mounts=(Mount(project, "/project", writable=True),),
)
done = asyncio.run(Sandbox().capture(spec, deadline_s=30))
sys.stdout.write(done.stdout.decode())
"""


def tree(seconds: int) -> SandboxSpec:
    argv = tuple(word.format(seconds) for word in TREE)
    return SandboxSpec(argv=argv, env=ENV, slot=0)


async def test_a_canceled_run_leaves_no_process() -> None:
    running = asyncio.create_task(our_sandbox().capture(tree(81), deadline_s=60))
    await until(lambda: len(alive("sleep 81")) >= 4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not alive("sleep 81")


async def test_a_run_that_is_canceled_again_while_it_is_killed_leaves_no_process() -> None:
    running = asyncio.create_task(our_sandbox().capture(tree(82), deadline_s=60))
    await until(lambda: len(alive("sleep 82")) >= 4)
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)
    assert running.cancelled()
    assert not alive("sleep 82")


async def test_a_run_that_is_canceled_at_any_moment_of_its_start_leaves_no_process() -> None:
    for turns in range(0, 40, 3):
        running = asyncio.create_task(our_sandbox().capture(tree(84), deadline_s=60))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert not alive("sleep 84")


@pytest.mark.parametrize("attempt", range(5))
async def test_an_agent_that_is_killed_takes_its_builds_with_it(attempt: int) -> None:
    agent = subprocess.Popen([sys.executable, "-c", AN_AGENT, str(UID_BASE)])
    try:
        await until(lambda: len(alive("sleep 83", slot=3)) >= 2, within_s=10)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait(timeout=10)
    await until(lambda: not alive(slot=3))


@pytest.mark.requires("root")
def test_an_agent_that_is_an_ordinary_user_builds_as_that_user(tmp: Path) -> None:
    project = tmp / "project"
    project.mkdir()
    os.chown(project, 65_200, 65_200)
    done = as_ordinary_user(65_200, A_BUILD, str(project))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == [b"1000", b"1000"]
    assert (project / "made").stat().st_uid == 65_200


async def test_what_must_end_ends_before_a_cancellation_does() -> None:
    steps: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        steps.append("whole")

    task = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["whole"]


async def test_uninterrupted_work_returns_and_raises_as_it_is() -> None:
    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise ValueError("broken")

    assert await uninterrupted(fine()) == 7
    with pytest.raises(ValueError, match="broken"):
        await uninterrupted(broken())
