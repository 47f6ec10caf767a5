"""Projects that attack the agent that builds them, and the honest build after each."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest
from aegis_agent.toolchains import Toolchains
from aegis_protocol.failures.build import ArtifactMissing, ArtifactUnsafe
from build_stand import BuildStand, Progress, Screen, alive, fixture, with_script
from fixtures_platformio import platformio_home
from waiting import until

__all__ = ["platformio_home"]
pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")


@pytest.fixture
async def stand(tmp: Path, platformio_home: Path) -> BuildStand:
    toolchains = await Toolchains.detect(platformio_home=platformio_home)
    return BuildStand(tmp, toolchains, silence_s=30)


async def an_honest_build_succeeds(stand: BuildStand) -> None:
    """Of the same project, in the same workspace."""
    assert (await stand.build(fixture("hello"))).error is None


async def test_a_script_reads_neither_secrets_nor_state(
    stand: BuildStand, platformio_home: Path
) -> None:
    (stand.state / "identity.key").write_text("SECRET-KEY")
    script = f"""
import os, sys
for path in ("/etc/shadow", "/root/.ssh/id_rsa", "{stand.state}/identity.key", "{stand.state}",
             "/proc/1/root/etc/shadow", "/var/lib/aegis", "/home"):
    try:
        got = os.listdir(path) if os.path.isdir(path) else open(path).read()
        sys.stderr.write("GOT %s %r\\n" % (path, got))
    except OSError as exc:
        sys.stderr.write("NO %s\\n" % path)
sys.stderr.write("ENV %s\\n" % sorted(os.environ))
"""
    screen = Screen()
    await stand.build(with_script(fixture("hello"), script), screen=screen)
    assert screen.text.count("NO /") == 7
    assert "GOT" not in screen.text
    assert "SECRET" not in screen.text


async def test_a_script_reaches_no_network(stand: BuildStand) -> None:
    screen = Screen()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""
import socket, sys
for address in (("127.0.0.1", {port}), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, timeout=2)
        sys.stderr.write("REACHED %s\\n" % address[0])
    except OSError as exc:
        sys.stderr.write("REFUSED %s\\n" % exc)
"""
        await stand.build(with_script(fixture("hello"), script), screen=screen)
    assert "REACHED" not in screen.text
    assert "REFUSED" in screen.text


async def test_a_script_changes_no_toolchain(stand: BuildStand, platformio_home: Path) -> None:
    script = f"""
import os, sys
for path in ("{platformio_home}/core/platforms/aegis-esp/platform.json",
             "{platformio_home}/venv/bin/evil", "/usr/bin/evil",
             "/core/platforms/aegis-esp/platform.json"):
    try:
        open(path, "w").write("evil")
        sys.stderr.write("WROTE %s\\n" % path)
    except OSError:
        sys.stderr.write("DENIED\\n")
"""
    screen = Screen()
    await stand.build(with_script(fixture("hello"), script), screen=screen)
    assert "WROTE" not in screen.text
    assert "DENIED" in screen.text
    await an_honest_build_succeeds(stand)


async def test_a_script_that_forks_without_end_is_bounded_and_dies(stand: BuildStand) -> None:
    script = """
import os, sys, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(94)
            os._exit(0)
        count += 1
except OSError:
    sys.stderr.write("FORKED %d\\n" % count)
    raise SystemExit(3)
"""
    screen = Screen()
    build = await stand.prepare(with_script(fixture("hello"), script))
    running = asyncio.create_task(build.run(screen, Progress()))
    said = await until(lambda: re.search(r"FORKED (\d+)\s", screen.text), within_s=50)
    assert int(said[1]) < 600
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert not alive()
    await an_honest_build_succeeds(stand)


async def test_a_script_writes_no_huge_file(stand: BuildStand) -> None:
    script = """
import sys
try:
    with open("/project/.pio/huge", "wb") as file:
        file.truncate(3 << 30)
    sys.stderr.write("WROTE\\n")
except OSError:
    sys.stderr.write("BOUNDED\\n")
"""
    screen = Screen()
    await stand.build(with_script(fixture("hello"), script), screen=screen)
    assert "WROTE" not in screen.text


async def test_links_planted_in_the_workspace_are_not_followed_by_the_next_sync(
    stand: BuildStand, tmp: Path
) -> None:
    victim = tmp / "victim"
    victim.mkdir(mode=0o755)
    (victim / "main.c").write_text("precious")
    script = f"""
import os, shutil
os.unlink("/project/platformio.ini"); os.symlink("{victim}/main.c", "/project/platformio.ini")
shutil.rmtree("/project/src"); os.symlink("{victim}", "/project/src")
os.symlink("/etc", "/project/etc")
os.rename("/project/.pio", "/project/.old"); os.symlink("{victim}", "/project/.pio")
raise SystemExit(1)
"""
    outcome = await stand.build(with_script(fixture("hello"), script))
    assert outcome.error is not None
    assert (stand.workspace() / "src").is_symlink()
    changed = {**fixture("hello")}
    changed["src/main.c"] += b"\n// changed\n"
    changed["src/new.c"] = b"int added;\n"
    again = await stand.build(changed)
    assert {p.name: p.read_text() for p in victim.iterdir()} == {"main.c": "precious"}
    assert victim.stat().st_uid == tmp.stat().st_uid
    assert not (stand.workspace() / "etc").exists()
    # .pio is kept as it is, and leads nowhere inside: cleaning removes the link, not its target.
    if again.error is not None:
        assert (await stand.build(changed, clean=True)).error is None
    assert not (stand.workspace() / ".pio").is_symlink()
    await an_honest_build_succeeds(stand)


REPLACE = """
Import("env")
def replace(source, target, env):
    import os
    path = "/project/.pio/build/esp32p4/" + "{name}"
    if os.path.isfile(path) and not os.path.islink("/project/.pio/build/esp32p4"):
        os.unlink(path)
        {how}
env.AddPostAction("checkprogsize", replace)
"""


def replacing(name: str, how: str) -> dict[str, bytes]:
    files = with_script(fixture("hello"), REPLACE.format(name=name, how=how))
    files["platformio.ini"] = files["platformio.ini"].replace(b"pre:hostile", b"post:hostile")
    return files


async def test_an_image_that_is_a_link_is_refused(stand: BuildStand, tmp: Path) -> None:
    (tmp / "secret").write_text("SECRET" * 100)
    files = replacing("firmware.bin", f"os.symlink('{tmp}/secret', path)")
    outcome = await stand.build(files, task_id="t1")
    assert isinstance(outcome.error, ArtifactUnsafe)
    assert outcome.result.manifest is None
    names = {artifact.name for artifact in stand.results.artifacts("alice", "t1")}
    assert names == {"build.json", "build.log", "diagnostics.json"}


async def test_an_image_below_a_linked_folder_is_refused(stand: BuildStand) -> None:
    how = (
        "os.rename('/project/.pio/build/esp32p4', '/project/.pio/moved');"
        "os.symlink('/project/.pio/moved', '/project/.pio/build/esp32p4')"
    )
    outcome = await stand.build(replacing("firmware.map", how))
    assert isinstance(outcome.error, ArtifactUnsafe | ArtifactMissing)


async def test_a_project_that_prints_without_end_is_only_slowed(stand: BuildStand) -> None:
    screen = Screen()
    script = """
import sys
line = "x" * 1000
for _ in range(300):
    sys.stderr.write(line)
"""
    outcome = await stand.build(with_script(fixture("hello"), script), screen=screen)
    assert len(screen.data) > 300_000
    assert outcome.error is None
