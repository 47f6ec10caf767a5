"""Both services under a real systemd: their users, files and hardening, and the sandbox in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from container import Container, booted
from house import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.requires("root", "systemd-nspawn", "nsenter", "bwrap"),
]

SYSTEMD = ROOT / "systemd"
ONLINE_S = 30.0
RESTART_S = 30.0
SANDBOX_CHECK = """
import asyncio, os
from aegis_agent.sandbox import Sandbox
assert os.geteuid() != 0
asyncio.run(Sandbox().check())
"""
# What is tried before the agent starts is under the unit's hardening too.
DROP_IN = """
[Service]
ExecStartPre=/opt/aegis/bin/python /opt/aegis/check.py
WatchdogSec=4
"""
CONTROL_DROP_IN = """
[Service]
WatchdogSec=6
RestartSec=1
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Installed as the comments in systemd/ say: units, users, folders, env files; both started."""
    tmp = tmp_path_factory.mktemp("machine")
    etc = tmp / "etc"
    etc.mkdir()
    (etc / "control.env").write_text("AEGIS_LOG=info\n")
    (etc / "agent.env").write_text("AEGIS_AGENT_NAME=boxed\nAEGIS_AGENT_LABELS=site=test\n")
    (etc / "secrets.env").write_text("AGENT_AUTH_SECRET=" + "abcdefgh" * 6 + "\n")
    (tmp / "check.py").write_text(SANDBOX_CHECK)
    (tmp / "drop-in.conf").write_text(DROP_IN)
    (tmp / "control-drop-in.conf").write_text(CONTROL_DROP_IN)
    units = "/etc/systemd/system"
    files = {
        f"{units}/aegis-control.service": SYSTEMD / "aegis-control.service",
        f"{units}/aegis-agent.service": SYSTEMD / "aegis-agent.service",
        f"{units}/aegis-agent.service.d/test.conf": tmp / "drop-in.conf",
        f"{units}/aegis-control.service.d/test.conf": tmp / "control-drop-in.conf",
        "/etc/sysusers.d/aegis.conf": SYSTEMD / "sysusers.d/aegis.conf",
        "/etc/tmpfiles.d/aegis.conf": SYSTEMD / "tmpfiles.d/aegis.conf",
        "/opt/aegis/check.py": tmp / "check.py",
        "/mnt": etc,
    }
    with booted(tmp, files) as container:
        installed = container.run(
            *("sh", "-ec"),
            "for name in control agent; do install -m 0644 /mnt/$name.env /etc/aegis/; done;"
            "install -m 0640 -o root -g aegis /mnt/secrets.env /etc/aegis/",
        )
        assert installed.returncode == 0, installed.stderr
        for service in ("aegis-control", "aegis-agent"):
            started = container.run("systemctl", "start", service, limit_s=100)
            assert started.returncode == 0, container.journal()
        yield container


def shown(machine: Container, service: str, field: str) -> str:
    argv = ("systemctl", "show", "--value", f"--property={field}", service)
    return machine.run(*argv).stdout.strip()


def test_root_lists_the_agent_on_the_control_host_with_nothing_to_configure(
    machine: Container,
) -> None:
    ends = time.monotonic() + ONLINE_S
    while True:
        listed = machine.run("aegis-control", "list-agents", "--json")
        assert listed.returncode == 0, listed.stderr + machine.journal()
        agents = json.loads(listed.stdout)["agents"]
        if [(agent["name"], agent["state"]) for agent in agents] == [("boxed", "online")]:
            return
        assert time.monotonic() < ends, (agents, machine.journal())
        time.sleep(0.5)


def test_the_sandbox_works_under_the_hardening_of_the_unit(machine: Container) -> None:
    checked = shown(machine, "aegis-agent", "ExecStartPre")
    assert "check.py" in checked
    assert "status=0" in checked, machine.journal()


@pytest.mark.parametrize("service", ["aegis-control", "aegis-agent"])
def test_a_service_runs_as_a_user_of_its_own_without_any_capability(
    machine: Container, service: str
) -> None:
    pid = shown(machine, service, "MainPID")
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = machine.run("id", "-u", service).stdout.strip()
    assert user not in ("", "0")
    assert set(fields["Uid"].split()) == {user}
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_neither_service_can_read_the_state_of_the_other(machine: Container) -> None:
    for service, other in (("control", "agent"), ("agent", "control")):
        uid = machine.run("id", "-u", f"aegis-{service}").stdout.strip()
        argv = ("setpriv", f"--reuid={uid}", "--clear-groups", "ls", f"/var/lib/aegis/{other}")
        assert machine.run(*argv).returncode != 0


@pytest.mark.parametrize("service", ["aegis-agent", "aegis-control"])
def test_a_service_that_hangs_is_started_again(machine: Container, service: str) -> None:
    before = shown(machine, service, "MainPID")
    assert machine.run("sh", "-c", f"kill -STOP {before}").returncode == 0
    ends = time.monotonic() + RESTART_S
    while shown(machine, service, "NRestarts") == "0" or (
        shown(machine, service, "ActiveState") != "active"
    ):
        assert time.monotonic() < ends, machine.journal()
        time.sleep(0.5)
    assert shown(machine, service, "NRestarts") == "1"
    assert shown(machine, service, "MainPID") != before


@pytest.mark.parametrize("service", ["aegis-agent", "aegis-control"])
def test_a_service_stops_in_order(machine: Container, service: str) -> None:
    stopped = machine.run("systemctl", "stop", service)
    assert stopped.returncode == 0
    assert shown(machine, service, "Result") == "success", machine.journal()


def test_a_wrong_setting_is_said_once_and_not_tried_again(machine: Container) -> None:
    machine.run("sh", "-c", "echo ALLOWED_ORIGINS=https://*.example.org >> /etc/aegis/control.env")
    assert machine.run("systemctl", "start", "aegis-control").returncode != 0
    assert shown(machine, "aegis-control", "ActiveState") == "failed"
    assert shown(machine, "aegis-control", "NRestarts") == "0"
    assert "ALLOWED_ORIGINS" in machine.journal()
