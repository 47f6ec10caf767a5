"""The units, read by systemd itself, and example settings that really are settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aegis_agent.config import AgentConfig
from aegis_control.config import ControlConfig
from house import ROOT, run

SYSTEMD = ROOT / "systemd"
SERVICES = ["aegis-control", "aegis-agent"]
EXPOSURE_LIMIT = {"aegis-control": 20, "aegis-agent": 40}
ALIAS_OF = {
    "control.env": {str(field.validation_alias) for field in ControlConfig.model_fields.values()},
    "agent.env": {str(field.validation_alias) for field in AgentConfig.model_fields.values()},
}
ALIAS_OF["secrets.env"] = ALIAS_OF["control.env"] | ALIAS_OF["agent.env"]
SETTING = re.compile(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)


@pytest.fixture
def unit(tmp: Path, request: pytest.FixtureRequest) -> Path:
    """The unit of this name with a program that is on every machine."""
    name: str = request.param
    text = (SYSTEMD / f"{name}.service").read_text()
    changed = re.sub(r"^ExecStart=/opt/aegis/bin/\S+", "ExecStart=/bin/true", text, flags=re.M)
    assert changed != text
    path = tmp / f"{name}.service"
    path.write_text(changed)
    return path


@pytest.mark.requires("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES, indirect=True)
def test_systemd_has_nothing_to_say_about_a_unit(unit: Path) -> None:
    done = run(["systemd-analyze", "verify", "--man=no", unit], cwd=unit.parent)
    # It exits with 0 on a key that it does not know: what counts is that it is silent.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.requires("systemd-analyze")
@pytest.mark.parametrize("unit", ["aegis-control"], indirect=True)
def test_systemd_speaks_when_a_unit_is_wrong(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("RestartSec=", "RestartSeconds="))
    done = run(["systemd-analyze", "verify", "--man=no", unit], cwd=unit.parent)
    assert "RestartSeconds" in done.stderr


@pytest.mark.requires("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES, indirect=True)
def test_a_unit_is_as_closed_as_its_work_allows(unit: Path) -> None:
    limit = EXPOSURE_LIMIT[unit.stem]
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", str(unit)]
    done = run(argv, cwd=unit.parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.requires("systemd-sysusers")
def test_the_users_of_the_units_are_made(tmp: Path) -> None:
    (tmp / "etc").mkdir()
    argv = ["systemd-sysusers", f"--root={tmp}", str(SYSTEMD / "sysusers.d/aegis.conf")]
    done = run(argv, cwd=tmp)
    assert done.returncode == 0, done.stderr
    users = {line.split(":")[0] for line in (tmp / "etc/passwd").read_text().splitlines()}
    groups = {
        line.split(":")[0]: set(line.split(":")[3].split(","))
        for line in (tmp / "etc/group").read_text().splitlines()
    }
    for service in SERVICES:
        wanted = re.search(r"^User=(.*)$", (SYSTEMD / f"{service}.service").read_text(), re.M)
        assert wanted is not None
        assert wanted[1] in users
    assert groups["aegis"] == set(SERVICES)
    assert "aegis-agent" in groups["dialout"]


@pytest.mark.parametrize("name", ["control.env", "agent.env", "secrets.env"])
def test_an_example_file_has_settings_alone_that_are_read(name: str) -> None:
    found = {match[1] for match in SETTING.finditer((SYSTEMD / name).read_text())}
    assert found
    assert found <= ALIAS_OF[name]


def test_no_example_file_has_a_secret_in_it_or_beside_the_others() -> None:
    secrets = dict(SETTING.findall((SYSTEMD / "secrets.env").read_text()))
    assert {value for name, value in secrets.items() if name.endswith(("SECRET", "PREVIOUS"))} == {
        ""
    }
    for name in ("control.env", "agent.env"):
        assert not secrets.keys() & dict(SETTING.findall((SYSTEMD / name).read_text())).keys()


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_keeps_its_state_where_root_looks_for_it(service: str) -> None:
    text = (SYSTEMD / f"{service}.service").read_text()
    part = service.removeprefix("aegis-")
    assert f"StateDirectory=aegis/{part}\n" in text
    assert f"Environment=AEGIS_STATE_DIR=/var/lib/aegis/{part}\n" in text
