"""`espctl test-connection`: each hop measured, the one that failed named, advice where it helps."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aegis_client import candidates, connection_report, connector
from aegis_client.exit_codes import ExitCode
from aegis_protocol.http_api.grants import GrantReply, IceServer
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.rpc import METHODS
from client_stand import Ended, Espctl, Served
from fixtures_platformio import platformio_home
from stand import a_stand

__all__ = ["platformio_home"]


@pytest.fixture
def served() -> Iterator[Served]:
    with Served().running() as running:
        yield running


@pytest.fixture
def espctl(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp: Path
) -> Espctl:
    monkeypatch.chdir(tmp)
    monkeypatch.setattr(connector, "BETWEEN_TRIES_S", 0.01)
    return Espctl(monkeypatch, capfd, served.control.url, tmp)


def statuses(ended: Ended) -> dict[str, str]:
    return {check["name"]: check["status"] for check in ended.json["checks"]}


def test_every_hop_of_a_good_connection_is_measured(espctl: Espctl, served: Served) -> None:
    ended = espctl("test-connection", "--json")
    assert ended.code == 0, ended.out
    hops = statuses(ended)
    assert list(hops)[1:] == [
        *("control", "clock", "key", "grant", "signalling", "ice", "path", "dtls", "agent"),
        "throughput",
    ]
    assert "error" not in hops.values()
    figures = ended.json["figures"]
    assert 0 < figures["control_latency_s"] < 5
    assert abs(figures["clock_skew_s"]) < 1
    assert set(figures["hops_s"]) == {"control", "signalling", "dtls", "ice", "agent"}
    assert min(figures["hops_s"].values()) > 0
    assert figures["hops_s"]["dtls"] > 0.001, "two signatures, and two round trips"
    assert figures["candidates"]["here"]["host"] >= 1
    assert figures["candidates"]["agent"]["host"] >= 1
    assert (figures["path"], figures["relayed"]) == ("host/host", False)
    assert len(figures["pair"]) == 2
    assert 0 < figures["rtt_s"] < 5
    assert figures["up_bytes_per_s"] > 0
    assert figures["down_bytes_per_s"] > 0


def test_what_is_measured_is_what_was_carried_each_way_and_no_more(
    espctl: Espctl, served: Served
) -> None:
    carried = espctl("test-connection", "--json").json["figures"]["measured_bytes"]
    up = sum(size for size, _ in served.agent.measured)
    down = sum(size for _, size in served.agent.measured)
    assert (up, down) == (carried["up"], carried["down"])
    assert 0 < max(up, down) <= 4 * 1024 * 1024
    assert served.agent.ended_jobs == list(served.control.jobs)


def test_people_get_a_table_with_advice(espctl: Espctl) -> None:
    shown = espctl("test-connection").out
    assert "direct (host/host)" in shown
    assert "MB/s to the agent" in shown
    assert "no STUN or TURN server" in shown


def test_what_the_grant_allows_less_than_was_measured_is_told(
    espctl: Espctl, served: Served
) -> None:
    served.control.change_grant = lambda grant: grant.model_copy(
        update={"max_bandwidth_kbps": 2000, "max_message_rate": 50}
    )
    checks = espctl("test-connection", "--json").json["checks"]
    (measured,) = (check for check in checks if check["name"] == "throughput")
    assert "2000 kbit/s and 50 messages per second" in measured["remedy"]


def test_a_stun_server_that_does_not_answer_is_named(espctl: Espctl, served: Served) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"stun:127.0.0.1:{deaf.getsockname()[1]}"

        def with_stun(grant: GrantReply) -> GrantReply:
            return grant.model_copy(update={"ice_servers": (IceServer(urls=(url,)),)})

        served.control.change_grant = with_stun
        ended = espctl("test-connection", "--json")
    assert ended.code == 0
    assert statuses(ended)["ice_server"] == "warning"
    assert ended.json["figures"]["ice_servers"] == [{"url": url, "reason": "no answer in time"}]


def test_an_answer_that_never_comes_stops_at_signalling(
    espctl: Espctl, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "ATTEMPT_S", 0.3)
    served.call(served.control.relays.clear)
    ended = espctl("test-connection", "--json")
    assert ended.code == ExitCode.UNREACHABLE
    hops = statuses(ended)
    assert (hops["grant"], hops["signalling"]) == ("ok", "error")
    assert hops["ice"] == hops["dtls"] == hops["agent"] == "skipped"
    (error,) = ended.json["errors"]
    assert error.startswith("signalling: ")
    failed = next(check for check in ended.json["checks"] if check["status"] == "error")
    assert failed["remedy"]


def test_a_job_that_no_agent_takes_stops_at_the_grant(
    espctl: Espctl, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_report, "WAIT_S", 0.1)
    served.control.pending = (Reason(code="agent.busy", detail="all slots are taken"),)
    ended = espctl("test-connection", "--json")
    assert ended.code == ExitCode.TIMED_OUT
    assert statuses(ended)["grant"] == "error"
    assert statuses(ended)["signalling"] == "skipped"


def test_a_wrong_key_and_a_control_that_is_not_there_stop_where_they_are(espctl: Espctl) -> None:
    espctl.set(MCP_AUTH_SECRET="aegis_sk_wrong")
    ended = espctl("test-connection", "--json")
    assert (ended.code, statuses(ended)["key"]) == (ExitCode.NOT_PERMITTED, "error")
    espctl.set(ESPCTL_URL="http://127.0.0.1:1")
    ended = espctl("test-connection", "--json")
    assert (ended.code, statuses(ended)["control"]) == (ExitCode.UNREACHABLE, "error")
    assert statuses(ended)["key"] == "skipped"
    espctl.set(AEGIS_STORE="/nowhere/at/all")
    ended = espctl("test-connection", "--json")
    assert (ended.code, statuses(ended)["settings"]) == (ExitCode.USAGE, "error")


def test_an_agent_that_cannot_measure_says_so(
    espctl: Espctl, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.agent.unknown_methods.add("link.measure")
    assert "link.measure" in METHODS
    ended = espctl("test-connection", "--json")
    assert ended.code == 0
    assert statuses(ended)["agent"] == "warning"
    assert "rtt_s" not in ended.json["figures"]


@pytest.mark.parametrize(
    ("sdp", "found", "text"),
    [
        ("v=0\r\n", {}, "none"),
        (
            "a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host\r\n"
            "a=candidate:2 1 udp 1694498815 192.0.2.9 5001 typ srflx raddr 192.0.2.1 rport 5000\r\n"
            "a=candidate:3 1 udp 2130706431 2001:db8::1 5000 typ host\r\n",
            {"host": 2, "srflx": 1},
            "2 host, 1 srflx",
        ),
    ],
)
def test_candidates_are_counted_by_kind(sdp: str, found: dict[str, Any], text: str) -> None:
    assert candidates.kinds(sdp) == found
    assert candidates.told(found) == text


@pytest.mark.long
@pytest.mark.requires("bwrap")
def test_the_real_programs_are_measured_for_a_viewer_too(platformio_home: Path) -> None:
    with a_stand(platformio_home) as stand:
        stand.agent()
        viewer = stand.client("viewer", role="viewer")
        measured = viewer("test-connection", "--json").expect().json
        assert measured["status"] != "error"
        assert {"control", "clock", "grant", "signalling", "ice", "path", "dtls", "agent"} <= {
            check["name"] for check in measured["checks"] if check["status"] != "skipped"
        }
        figures = measured["figures"]
        assert 0 < figures["control_latency_s"] < 10 and abs(figures["clock_skew_s"]) < 5
        assert min(figures["candidates"]["here"]["host"], figures["candidates"]["agent"]["host"])
        assert (figures["path"], figures["relayed"]) == ("host/host", False)
        assert len(figures["pair"]) == 2 and figures["ice_servers"] == []
        assert min(figures["hops_s"].values()) > 0 and figures["rtt_s"] > 0
        assert figures["measured_bytes"]["up"] > 0 and figures["up_bytes_per_s"] > 0
        assert figures["measured_bytes"]["down"] > 0 and figures["down_bytes_per_s"] > 0
        shown = viewer("test-connection").expect().raw
        for words in ("direct (host/host)", " host", "MB/s to the agent", "no STUN or TURN"):
            assert words in " ".join(shown.split()), shown
        assert stand.agent_row("agent")["slots_free"] == 1
