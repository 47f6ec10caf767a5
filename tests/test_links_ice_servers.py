"""Dead STUN and TURN servers cost half a second, and wrong TURN credentials are not silent."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from aegis_links import ice_guide, ice_knock
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import MOST_SERVERS, IceGuide
from aegis_links.ice_servers import ask_all, find_live
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import RelayRefused, RelayUnavailable
from aegis_protocol.http_api.grants import IceServer
from waiting import until

pytestmark = pytest.mark.timeout(20)

_COOKIE = bytes.fromhex("2112a442")
_ALLOCATE = 0x0003


class _StunServer(asyncio.DatagramProtocol):
    """Answers binding requests, and every allocation with 401: nobody's credentials are right."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.answers = sys.maxsize

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        (kind,) = struct.unpack_from(">H", data)
        self.requests.append(kind)
        if len(self.requests) > self.answers:
            return
        if kind == _ALLOCATE:
            attributes = _attribute(0x0009, bytes([0, 0, 4, 1]) + b"Unauthorized")
            attributes += _attribute(0x0014, b"aegis.test") + _attribute(0x0015, b"0123456789")
            answer = 0x0113
        else:
            port = addr[1] ^ 0x2112
            host = bytes(a ^ b for a, b in zip(socket.inet_aton(addr[0]), _COOKIE, strict=True))
            attributes = _attribute(0x0020, struct.pack(">BBH", 0, 1, port) + host)
            answer = 0x0101
        head = struct.pack(">HH", answer, len(attributes)) + _COOKIE + data[8:20]
        self._transport.sendto(head + attributes, addr)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


@asynccontextmanager
async def stun_server(port: int = 0) -> AsyncIterator[tuple[_StunServer, str]]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        _StunServer, local_addr=("127.0.0.1", port)
    )
    try:
        host, bound = transport.get_extra_info("sockname")
        yield server, f"{host}:{bound}"
    finally:
        transport.close()


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a server that takes everything and says nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{hole.getsockname()[1]}"


async def test_dead_servers_are_left_out_within_the_deadline(deaf: str) -> None:
    async with stun_server() as (_, alive):
        servers = [
            IceServer(urls=(f"stun:{deaf}", "stun:127.0.0.1:1")),
            IceServer(urls=(f"turn:{deaf}", "turns:127.0.0.1:1", "turn:127.0.0.1:1?transport=tcp")),
            IceServer(urls=("http://not-a-server", f"stun:{alive}", f"turn:{alive}")),
        ]
        began = time.monotonic()
        live = await find_live(servers)
        assert time.monotonic() - began < 1.5
        assert live.stun is not None and live.stun.url == f"stun:{alive}"
        assert live.turn is not None and live.turn.url == f"turn:{alive}"


@pytest.mark.parametrize(
    "wrong",
    [
        "stun:127.0.0.1:70000",
        "turn:127.0.0.1:0?transport=tcp",
        "stun:stun..example.org:3478",
        f"turns:{'a' * 64}.example.org",
    ],
)
async def test_a_url_with_a_slip_costs_that_server_and_no_link(wrong: str) -> None:
    async with stun_server() as (_, alive):
        servers = [IceServer(urls=(wrong, f"stun:{alive}"), username="u", credential="c")]
        chosen = await find_live(servers)
        assert chosen.stun is not None and chosen.stun.url == f"stun:{alive}"
        assert chosen.turn is None
        async with IceGuide().running() as guide:
            guide.expect([wrong])
            assert (await guide.living(servers)).stun == chosen.stun
            guide.forget()
            assert (await guide.living(servers)).stun == chosen.stun


async def test_a_link_that_is_canceled_while_stun_is_asked_leaves_no_question_behind() -> None:
    async def begin() -> None:
        async with PeerLink.offering(
            Certificate.generate(),
            channels={ChannelName.ESPCTL},
            ice_servers=[IceServer(urls=(f"stun:{address}",))],
        ):
            pytest.fail("it was canceled")

    async with stun_server() as (server, address):
        server.answers = 1  # the knock
        before = asyncio.all_tasks()
        beginning = asyncio.create_task(begin())
        await until(lambda: len(server.requests) > 1)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        assert beginning.cancelled()
        assert asyncio.all_tasks() == before


async def test_what_stun_sees_of_this_machine_is_offered() -> None:
    async with (
        stun_server() as (_, address),
        PeerLink.offering(
            Certificate.generate(),
            channels={ChannelName.ESPCTL},
            ice_servers=[IceServer(urls=(f"stun:{address}",))],
        ) as link,
    ):
        kinds = {line.split()[7] for line in link.offer_sdp.splitlines() if " typ " in line}
        assert kinds == {"host", "srflx"}


async def test_a_later_server_that_answers_is_not_held_up_by_an_earlier_one(
    deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ice_knock.KNOCK_DEADLINE_S, "udp", 60.0)
    async with stun_server() as (_, alive):
        live = await find_live([IceServer(urls=(f"turn:{deaf}", f"turn:{alive}"))])
    assert live.turn is not None and live.turn.url == f"turn:{alive}"
    assert [answer.url for answer in live.turn_refusals] == [f"turn:{deaf}"]


async def test_a_web_server_is_no_turn_server() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        urls = (f"turn:127.0.0.1:{port}?transport=tcp", f"turns:127.0.0.1:{port}")
        live = await find_live([IceServer(urls=urls)])
    plain, secure = live.turn_refusals
    assert plain.reason == "what answers there is no TURN server"
    assert secure.reason is not None and secure.reason.startswith("no TLS there")


async def test_what_is_known_beforehand_costs_no_time(
    deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later link asks nobody: the dead server is known to be dead."""
    monkeypatch.setitem(ice_knock.KNOCK_DEADLINE_S, "udp", 0.2)
    async with stun_server() as (server, alive), IceGuide().running() as guide:
        urls = (f"stun:{deaf}", f"stun:{alive}", f"turn:{deaf}")
        guide.expect(urls)
        first = await guide.living([IceServer(urls=urls)])
        monkeypatch.setitem(ice_knock.KNOCK_DEADLINE_S, "udp", 60.0)
        async with asyncio.timeout(10):
            again = await guide.living([IceServer(urls=urls, username="u", credential="another")])
        assert len(server.requests) == 1
    assert first.stun is not None and again.stun is not None
    assert first.stun.url == again.stun.url == f"stun:{alive}"
    assert again.turn is None
    assert [answer.reason for answer in again.turn_refusals] == ["no answer in time"]


async def test_a_server_that_goes_and_comes_back_is_noticed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ice_guide, "REFRESH_S", 0.05)
    async with IceGuide().running() as guide:
        async with stun_server() as (_, address):
            servers = [IceServer(urls=(f"stun:{address}",))]
            assert (await guide.living(servers)).stun is not None
        port = int(address.rpartition(":")[2])

        async def stun_is_there(expected: bool) -> None:
            while ((await guide.living(servers)).stun is not None) is not expected:
                await asyncio.sleep(0.02)

        async with asyncio.timeout(10):
            await stun_is_there(False)
            async with stun_server(port):
                await stun_is_there(True)


async def test_what_was_known_is_asked_anew_once_no_link_came_about(deaf: str) -> None:
    async with stun_server() as (server, address), IceGuide().running() as guide:
        servers = [IceServer(urls=(f"stun:{address}",))]
        await guide.living(servers)
        guide.forget()
        assert (await guide.living(servers)).stun is not None
        assert len(server.requests) == 2


async def test_no_more_servers_are_kept_in_mind_than_a_process_has_use_for() -> None:
    async with stun_server() as (_, address), IceGuide().running() as guide:
        guide.expect([f"stun:127.0.0.1:{port}" for port in range(1, 2 * MOST_SERVERS)])
        assert guide.known == MOST_SERVERS
        assert (await guide.living([IceServer(urls=(f"stun:{address}",))])).stun is not None
        assert guide.known == MOST_SERVERS


async def test_a_dead_server_with_two_credentials_is_told_of_once(deaf: str) -> None:
    servers = [
        IceServer(urls=(f"turn:{deaf}",), username=user, credential="of a secret")
        for user in ("by the new", "by the old")
    ]
    live = await find_live(servers)
    assert live.turns == ()
    assert [answer.url for answer in live.turn_refusals] == [f"turn:{deaf}"]
    assert [answer.url for answer in await ask_all(servers)] == [f"turn:{deaf}"]


async def test_no_servers_are_asked_where_none_are_given() -> None:
    live = await find_live([])
    assert (live.stun, live.turns, live.turn_refusals) == (None, (), ())


async def test_wrong_turn_credentials_are_told_and_the_link_goes_on_without() -> None:
    certificate = Certificate.generate()
    async with stun_server() as (server, address):
        turn = IceServer(urls=(f"turn:{address}",), username="u", credential="wrong")
        async with PeerLink.offering(
            certificate, channels={ChannelName.ESPCTL}, ice_servers=[turn]
        ) as link:
            assert isinstance(link.relay_unavailable, RelayRefused)
            assert address in link.relay_unavailable.message
            assert "typ host" in link.offer_sdp and "typ relay" not in link.offer_sdp
        assert _ALLOCATE in server.requests
        with pytest.raises(RelayRefused):
            async with PeerLink.offering(
                certificate, channels={ChannelName.ESPCTL}, ice_servers=[turn], relay_only=True
            ):
                pytest.fail("there is no relay")


async def test_relay_only_without_a_living_turn_server_is_an_error(deaf: str) -> None:
    certificate = Certificate.generate()
    for servers in ([], [IceServer(urls=(f"turn:{deaf}",), username="u", credential="c")]):
        with pytest.raises(RelayUnavailable) as caught:
            async with PeerLink.offering(
                certificate, channels={ChannelName.ESPCTL}, ice_servers=servers, relay_only=True
            ):
                pytest.fail("there is no relay")
        assert "TURN server" in caught.value.message
