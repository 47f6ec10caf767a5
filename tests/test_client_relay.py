"""The real programs with a real TURN server: what `test-connection` finds, and what a job meets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aegis_client.exit_codes import ExitCode
from fixtures_platformio import platformio_home
from other_host import OtherHost
from stand import BIN, EVERYWHERE, Client, Done, a_stand
from turn_server import SECRET, TurnServer, running

__all__ = ["platformio_home"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.requires("bwrap", "turnserver"),
]


@pytest.fixture(scope="module")
def turn() -> Iterator[TurnServer]:
    with running() as server:
        yield server


def checks(done: Done) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["checks"]}


def stood(platformio_home: Path, turn: TurnServer, secret: str) -> Iterator[Client]:
    with a_stand(
        platformio_home,
        AEGIS_TURN_URLS=",".join(turn.url(way) for way in ("udp", "tls")),
        AEGIS_TURN_SECRET=secret,
        AEGIS_CA_FILE=str(turn.ca),
    ) as stand:
        stand.agent()
        yield stand.client()


@pytest.fixture(scope="module")
def client(platformio_home: Path, turn: TurnServer) -> Iterator[Client]:
    yield from stood(platformio_home, turn, SECRET)


@pytest.fixture(scope="module")
def refused(platformio_home: Path, turn: TurnServer) -> Iterator[Client]:
    yield from stood(platformio_home, turn, "another")


def test_a_relayed_connection_is_measured_and_called_one(client: Client) -> None:
    done = client("test-connection", "--json", AEGIS_RELAY_ONLY="1").expect()
    figures = done.json["figures"]
    assert figures["relayed"] is True
    assert figures["path"].startswith("relay/")
    assert figures["candidates"]["here"] == {"relay": 1}
    assert figures["candidates"]["agent"]["relay"] == 1
    assert [server["reason"] for server in figures["ice_servers"]] == [None, None]
    assert figures["pair"][0].startswith("127.0.0.1:")
    assert figures["up_bytes_per_s"] > 0 and figures["down_bytes_per_s"] > 0
    found = checks(done)
    assert found["path"]["status"] == "warning"
    assert "allow UDP between the two machines" in found["path"]["remedy"]


def test_a_direct_way_goes_before_a_relay(client: Client) -> None:
    done = client("test-connection", "--json").expect()
    figures = done.json["figures"]
    assert (figures["relayed"], figures["path"]) == (False, "host/host")
    assert figures["candidates"]["here"]["relay"] == 1
    assert done.json["status"] == "ok", done.out


def test_a_refused_relay_is_a_warning_beside_a_direct_way_and_an_error_without(
    refused: Client,
) -> None:
    done = refused("test-connection", "--json").expect()
    warned = checks(done)["relay"]
    assert warned["status"] == "warning"
    assert "refuses the credentials" in warned["detail"]
    assert "AEGIS_TURN_SECRET" in warned["remedy"]
    failed = refused("test-connection", "--json", AEGIS_RELAY_ONLY="1")
    assert failed.code == ExitCode.UNREACHABLE
    ice = checks(failed)["ice"]
    assert ice["status"] == "error"
    assert "link.relay_refused" in ice["detail"]
    assert checks(failed)["agent"]["status"] == "skipped"


@pytest.mark.requires("root", "nft")
@pytest.mark.parametrize("between", ["a NAT", "a wall"])
def test_the_way_is_found_through_a_nat_and_around_a_wall(
    platformio_home: Path, between: str
) -> None:
    """Behind a NAT there is a direct way; where no datagram passes, the relay is reached by TLS."""
    host_of = OtherHost.behind_nat if between == "a NAT" else OtherHost.plugged_in
    with (
        host_of() as host,
        running(host.server) as turn,
        a_stand(
            platformio_home,
            listen=EVERYWHERE,
            AEGIS_STUN_URLS=f"stun:{turn.host}:{turn.port}",
            AEGIS_TURN_URLS=",".join(turn.url(way) for way in ("udp", "tls")),
            AEGIS_TURN_SECRET=SECRET,
            AEGIS_CA_FILE=str(turn.ca),
            ESPCTL_ALLOW_INSECURE="1",
        ) as stand,
    ):
        stand.agent()
        if between == "a wall":
            host.block_udp()
        done = stand.run(
            *host.command(str(BIN / "espctl"), "test-connection", "--json"),
            AEGIS_STORE=str(stand.folder / "client"),
            MCP_AUTH_SECRET=stand.key("flasher"),
            ESPCTL_URL=f"http://{host.server}:{stand.port}",
        ).expect()
    figures = done.json["figures"]
    stun, by_udp, by_tls = (server["reason"] for server in figures["ice_servers"])
    if between == "a NAT":
        assert (stun, by_udp, by_tls) == (None, None, None)
        assert figures["candidates"]["here"] == {"host": 1, "srflx": 1, "relay": 1}
        assert figures["relayed"] is False
    else:
        assert (stun, by_udp, by_tls) == ("no answer in time", "no answer in time", None)
        assert figures["candidates"]["here"] == {"host": 1, "relay": 1}
        assert figures["relayed"] is True
        assert figures["path"].startswith("relay/")
    assert figures["down_bytes_per_s"] > 0
