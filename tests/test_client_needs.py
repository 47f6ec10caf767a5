"""What each command asks control for: the channels and actions that it needs, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from aegis_client.cli.boards_work import monitor_needs
from aegis_client.exit_codes import ExitCode
from aegis_client.needs import BUILD, FLASH, RUN, TYPE, UPLOAD, WATCH, Needs
from aegis_control.identity import Identity
from aegis_control.policy.decision import Settings, decide
from aegis_control.policy.rules import NO_POLICY
from aegis_protocol.actions import Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.http_api.grants import GrantRequest
from client_stand import Espctl, Served, project
from fake_control import BOARD

READ_BUILD = {"artifact.read", "build.read"}
BUILDS = READ_BUILD | {"build.run", "source.write"}
WATCHES = {"board.read", "console.read"}


@pytest.fixture
def served() -> Iterator[Served]:
    with Served().running() as running:
        yield running


@pytest.fixture
def espctl(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp: Path
) -> Espctl:
    monkeypatch.chdir(tmp)
    return Espctl(monkeypatch, capfd, served.control.url, tmp)


def asked(served: Served) -> tuple[set[str], set[str]]:
    """Channels and actions of the last request for a grant."""
    wanted = served.control.wanted[-1]
    assert wanted.actions is not None
    return set(wanted.required_channels), {str(action) for action in wanted.actions}


def test_a_build_and_what_follows_it_ask_for_just_what_they_need(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    folder = project(tmp / "p")
    assert espctl("build", folder, "-t", "esp32p4", "-q").code == 0
    assert asked(served) == ({"espctl", "source", "pty", "firmware"}, BUILDS)
    monkey = tmp / "elsewhere"
    monkey.mkdir()
    job = next(iter(served.control.jobs))
    assert espctl("download", job, "--output", monkey, "-q").code == 0
    assert asked(served) == ({"espctl", "firmware"}, READ_BUILD)
    assert espctl("attach", job, "--output", monkey, "-q").code == 0
    assert asked(served) == ({"espctl", "pty", "firmware"}, READ_BUILD | {"build.run"})
    assert espctl("flash", folder, "-q").code == 0
    assert asked(served) == ({"espctl"}, {"board.read", "board.flash"})


def test_a_build_that_is_left_to_the_agent_reads_nothing(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    assert espctl("build", project(tmp / "p"), "-t", "esp32p4", "--detach", "-q").code == 0
    assert asked(served) == ({"espctl", "source"}, {"build.run", "source.write"})


def test_a_monitor_asks_to_type_and_to_reset_only_where_it_will(
    espctl: Espctl, served: Served
) -> None:
    watching = ("monitor", "--board", BOARD.id, "--expect", "boot", "-q")
    assert espctl(*watching).code == 0
    assert asked(served) == ({"espctl", "serial"}, WATCHES)
    assert espctl(*watching, "--reset").code == 0
    assert asked(served)[1] == WATCHES | {"board.flash"}
    assert espctl(*watching, "--stdin").code == 0
    assert asked(served)[1] == WATCHES | {"console.write"}


def test_a_monitor_whose_key_may_not_type_reads_along(espctl: Espctl, served: Served) -> None:
    served.control.lacking = frozenset({Action.CONSOLE_WRITE})
    ended = espctl("monitor", "--board", BOARD.id, "--expect", "boot", "--stdin")
    assert ended.code == 0, ended.err
    assert asked(served)[1] == WATCHES
    assert "this key may not type: reading along" in ended.err
    assert len(served.control.jobs) == 1


def test_a_role_without_a_needed_action_is_refused_before_there_is_a_job(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    served.control.lacking = frozenset({Action.BUILD_RUN})
    ended = espctl("build", project(tmp / "p"), "-t", "esp32p4", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.NOT_PERMITTED, "role.insufficient")
    assert served.control.jobs == {}
    assert served.agent.calls == []


def test_a_check_of_the_link_needs_no_action(espctl: Espctl, served: Served) -> None:
    assert espctl("doctor", "--link", "--json").code == 0
    assert asked(served) == ({"espctl"}, set())


def test_run_needs_what_build_flash_and_monitor_need() -> None:
    assert RUN.channels == frozenset(ChannelName)
    assert RUN.actions == frozenset(Action) - {Action.CONSOLE_WRITE}
    assert RUN.optional == frozenset()


def test_what_one_part_cannot_do_without_is_not_optional() -> None:
    must = Needs(frozenset(), frozenset({Action.CONSOLE_WRITE}))
    assert (TYPE | must).optional == frozenset()
    assert (WATCH | TYPE).without_optional() == WATCH


@pytest.mark.parametrize(
    "needs", [BUILD, FLASH | UPLOAD, RUN, monitor_needs(types=True, resets=True)]
)
def test_control_grants_a_flasher_all_that_a_command_needs(needs: Needs) -> None:
    request = GrantRequest(
        peer_fingerprint="sha-256:" + ":".join(["AB"] * 32),
        required_channels=tuple(needs.channels),
        actions=tuple(needs.actions),
    )
    settings = Settings(tuple(ChannelName), 0, 0, 14_400)
    decision = decide(Identity("me", Role.FLASHER), NO_POLICY, settings, request)
    assert decision.allowed
    assert set(decision.actions) == needs.actions
