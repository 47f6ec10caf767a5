"""What a sandboxed process can see, reach and use; and what it can't."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aegis_agent.sandbox import Captured, Limits, Mount, Sandbox, SandboxSpec
from aegis_agent.sandbox.diagnosis import explained
from aegis_protocol.failures.build import SandboxUnavailable
from build_stand import alive, build_uid, our_sandbox

pytestmark = pytest.mark.requires("bwrap")
ENV = {"PATH": "/usr/bin:/bin"}


async def run(*argv: str, **options: object) -> Captured:
    spec = SandboxSpec(argv=argv, env=ENV, slot=0, **options)  # type: ignore[arg-type]
    return await our_sandbox().capture(spec, deadline_s=30)


async def shell(script: str, **options: object) -> Captured:
    return await run("sh", "-c", script, **options)


def workspace(tmp: Path) -> Path:
    folder = tmp / "closed" / "workspace"
    folder.mkdir(parents=True)
    (tmp / "closed").chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, build_uid(), build_uid())
    return folder


async def test_it_works_here() -> None:
    await our_sandbox().check()


async def test_it_is_nobody_and_can_become_nobody_else() -> None:
    done = await shell("id -u; id -G; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status")
    assert done.stdout.decode().split() == [
        "1000", "1000",
        "CapEff:", "0000000000000000", "CapBnd:", "0000000000000000", "NoNewPrivs:", "1",
    ]  # fmt: skip


async def test_it_sees_its_own_processes_alone() -> None:
    done = await run("sh", "-c", "ls -d /proc/[0-9]* | wc -l")
    assert int(done.stdout) <= 5


async def test_it_makes_no_namespace_of_its_own() -> None:
    assert (await run("unshare", "--user", "true")).status != 0


async def test_it_reads_no_secret_and_no_state_of_the_agent(tmp: Path) -> None:
    secret = tmp / "identity.key"
    secret.write_text("secret")
    secret.chmod(0o644)
    script = f"cat /etc/shadow {secret} /root/.bashrc /proc/1/environ; ls /home /root /var /run"
    done = await shell(script)
    assert done.status != 0
    assert b"secret" not in done.stdout
    variables = done.stdout.rstrip(b"\0").split(b"\0")
    assert {line.partition(b"=")[0] for line in variables} <= {b"PATH", b"LC_CTYPE"}


async def test_it_inherits_no_variable_and_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, tmp: Path
) -> None:
    monkeypatch.setenv("MCP_AUTH_SECRET", "hush")
    with (tmp / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        done = await shell("env | sort; ls /proc/self/fd | sort -n | tr '\\n' ' '")
    assert b"hush" not in done.stdout
    *variables, descriptors = done.stdout.decode().splitlines()
    assert {line.partition("=")[0] for line in variables} == {
        "HOME", "LOGNAME", "PATH", "PWD", "TMPDIR", "USER",
    }  # fmt: skip
    assert descriptors.split() == ["0", "1", "2", "3"]  # 3 is ls's own


async def test_it_reaches_no_network() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', {}), timeout=5)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = await run("python3", "-c", code.format(port))
        assert b"ConnectionRefusedError" in done.stderr
        shared = await run("python3", "-c", code.format(port), network=True)
        assert shared.status == 0


async def test_it_writes_in_what_it_was_given_and_nowhere_else(tmp: Path) -> None:
    project = workspace(tmp)
    toolchain = tmp / "toolchain"
    toolchain.mkdir()
    (toolchain / "gcc").write_text("tool")
    mounts = (Mount(project, "/project", writable=True), Mount(toolchain, str(toolchain)))
    script = f"""
        echo built > /project/out && cat {toolchain}/gcc
        for place in / /etc /usr /usr/bin /dev /proc/sys {toolchain}; do
            touch "$place/evil" 2>/dev/null && echo "wrote $place"
        done
        touch /tmp/fine /dev/shm/fine && echo fine
    """
    done = await shell(script, mounts=mounts, cwd="/project")
    assert done.stdout == b"toolfine\n"
    assert (project / "out").read_text() == "built\n"
    assert (project / "out").stat().st_uid == build_uid()
    assert not Path("/tmp/fine").exists()


@pytest.mark.requires("root")
async def test_a_workspace_below_a_closed_folder_is_reached(tmp: Path) -> None:
    (tmp / "closed").mkdir(mode=0o700)
    prefix = tmp / "closed/python"
    prefix.mkdir()
    (prefix / "tool").write_text("here")
    done = await shell(f"cat {prefix}/tool; ls {tmp}/closed", mounts=(Mount(prefix, str(prefix)),))
    assert done.stdout == b"herepython\n"


@pytest.mark.requires("root")
async def test_slots_have_users_of_their_own() -> None:
    owners = [Sandbox(uid_base=65_100).owner(slot) for slot in (0, 1)]
    assert [owner.uid for owner in owners if owner] == [65_100, 65_101]


async def test_a_fork_bomb_stays_within_its_bound() -> None:
    script = "for i in $(seq 500); do sleep 60 & done; echo $(jobs -p | wc -l); exit 3"
    done = await shell(script, limits=Limits(processes=50))
    assert done.status != 0
    assert b"fork" in done.stderr
    assert not alive("sleep 60")


async def test_memory_and_file_sizes_have_bounds(tmp: Path) -> None:
    limits = Limits(memory_bytes=512 << 20, file_bytes=1 << 20)
    greedy = await run("python3", "-c", "bytearray(1 << 30)", limits=limits)
    assert b"MemoryError" in greedy.stderr
    mounts = (Mount(workspace(tmp), "/project", writable=True),)
    await shell("head -c 3000000 /dev/zero > /project/huge", mounts=mounts, limits=limits)
    assert (tmp / "closed/workspace/huge").stat().st_size == 1 << 20


async def test_processor_time_has_a_bound() -> None:
    done = await shell("while :; do :; done", limits=Limits(cpu_s=1))
    assert done.status == 128 + 9


async def test_its_own_disk_in_memory_has_a_bound() -> None:
    done = await shell("head -c 600000000 /dev/zero > /tmp/a; stat -c %s /tmp/a")
    assert b"No space left" in done.stderr
    assert int(done.stdout) < 600_000_000


async def test_what_it_leaves_in_the_background_ends_with_it() -> None:
    await shell("setsid sleep 71 & setsid nohup sleep 71 >/dev/null 2>&1 & exit 0")
    assert not alive("sleep 71")


async def test_a_deadline_leaves_nothing_running() -> None:
    spec = SandboxSpec(argv=("sh", "-c", "sleep 72 & sleep 72"), env=ENV, slot=0)
    with pytest.raises(TimeoutError):
        await our_sandbox().capture(spec, deadline_s=0.5)
    assert not alive("sleep 72")


async def test_more_output_than_was_asked_for_is_thrown_away() -> None:
    spec = SandboxSpec(argv=("head", "-c", "5000000", "/dev/zero"), env=ENV, slot=0)
    done = await our_sandbox().capture(spec, deadline_s=30, at_most_bytes=1000)
    assert done.status == 0
    assert done.stdout == bytes(1000)


async def test_no_descriptor_is_lost_to_a_run() -> None:
    await run("true")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await run("true")
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match="no-such-tool") as caught:
        await run("no-such-tool")
    assert "toolchain" in caught.value.remedy


async def test_a_mount_that_is_not_there_is_said(tmp: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="absent"):
        await run("true", mounts=(Mount(tmp / "absent", "/project"),))


async def test_without_bubblewrap_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aegis_agent.sandbox.sandbox.BWRAP_PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable) as caught:
        await our_sandbox().check()
    assert "apt-get install bubblewrap" in caught.value.remedy


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_parser -r"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ],
)
def test_a_kernel_that_refuses_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp: Path, setting: str, value: str, remedy: str
) -> None:
    (tmp / setting).parent.mkdir(parents=True)
    (tmp / setting).write_text(value + "\n")
    monkeypatch.setattr("aegis_agent.sandbox.diagnosis.SYSCTL", tmp)
    said = b"bwrap: setting up uid map: Permission denied\n"
    error = explained(SandboxUnavailable("no"), said)
    assert "Permission denied" in error.message
    assert remedy in error.remedy


async def test_where_user_namespaces_are_refused_the_check_says_so() -> None:
    """For real: in a user namespace that may have no other below it."""
    code = (
        "import asyncio, sys\n"
        "from aegis_agent.sandbox import Sandbox\n"
        "from aegis_protocol.failures.build import SandboxUnavailable\n"
        "try:\n"
        "    asyncio.run(Sandbox().check())\n"
        "except SandboxUnavailable as exc:\n"
        "    sys.exit(f'{exc.message} / {exc.remedy}')\n"
    )
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", limit, sys.executable, code],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert b"could not make the sandbox" in done.stderr
    assert b"Traceback" not in done.stderr
