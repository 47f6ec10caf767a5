"""Too many connections: which gives way, which never does, and who is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aegis_control.config import Network
from aegis_control.http.connections import Connections
from aegis_control.metrics import Metrics
from aegis_protocol.control_link import Status
from certificates import a_certificate, an_authority
from control_fixtures import MCP, Bench, bench, link_of
from waiting import until

HALF_A_BODY = (
    f"POST /grant/request HTTP/1.1\r\nHost: x\r\nX-API-Key: {MCP}\r\nContent-Length: 100\r\n"
    "Expect: 100-continue\r\n\r\n{"
).encode()


@dataclass(eq=False)
class One:
    """A connection of which the test says whether it is idle."""

    idle: bool = True
    closed: bool = False

    def is_idle(self) -> bool:
        return self.idle

    def give_way(self) -> None:
        self.closed = True


def bounds(most: int = 100, most_each: int = 100, proxies: tuple[Network, ...] = ()) -> Connections:
    return Connections(most=most, most_each=most_each, proxies=proxies, metrics=Metrics())


def opened(connections: Connections, *addresses: str) -> list[One]:
    """One idle connection from each address; there must be room."""
    made = [One() for _ in addresses]
    for one, address in zip(made, addresses, strict=True):
        assert connections.opened(one, address) is None
    return made


def test_the_idle_one_that_was_used_longest_ago_gives_way() -> None:
    connections = bounds(most=3)
    first, second, third = opened(connections, "192.0.2.1", "192.0.2.2", "192.0.2.3")
    connections.used(first)
    third.idle = False
    (fourth,) = opened(connections, "192.0.2.4")
    assert (first.closed, second.closed, third.closed) == (False, True, False)
    assert len(connections) == 3
    opened(connections, "192.0.2.5")
    assert (first.closed, third.closed, fourth.closed) == (True, False, False)


def test_an_address_that_has_too_many_loses_its_own() -> None:
    connections = bounds(most_each=2)
    (other,) = opened(connections, "198.51.100.1")
    first, second, third = opened(connections, "192.0.2.1", "192.0.2.1", "192.0.2.1")
    assert (other.closed, first.closed, second.closed, third.closed) == (False, True, False, False)


def test_an_ipv6_caller_is_its_64() -> None:
    connections = bounds(most_each=1)
    first, _ = opened(connections, "2001:db8::1", "2001:db8::2")
    assert first.closed
    second, _ = opened(connections, "2001:db8:0:1::1", "2001:db8:0:2::1")
    assert not second.closed


def test_a_trusted_proxys_connections_count_towards_no_address() -> None:
    connections = bounds(most=3, most_each=1, proxies=(ipaddress.ip_network("192.0.2.0/24"),))
    first, second, third = opened(connections, "192.0.2.1", "192.0.2.1", "192.0.2.1")
    assert [one.closed for one in (first, second, third)] == [False, False, False]
    opened(connections, "192.0.2.1")
    assert [one.closed for one in (first, second, third)] == [True, False, False]  # but in all


@pytest.mark.parametrize(
    ("most", "most_each", "code"),
    [(2, 100, "control.unavailable"), (100, 2, "request.rate_limited")],
)
def test_where_none_is_idle_the_new_one_is_refused(most: int, most_each: int, code: str) -> None:
    connections = bounds(most, most_each)
    busy = opened(connections, "192.0.2.1", "192.0.2.1")
    for one in busy:
        one.idle = False
    refused = connections.opened(One(), "192.0.2.1")
    assert refused is not None and refused.code == code
    assert len(connections) == 2
    connections.closed(busy[0])
    opened(connections, "192.0.2.1")


def test_links_and_streams_never_give_way_and_count_only_in_all() -> None:
    connections = bounds(most=3, most_each=1)
    links = opened(connections, "192.0.2.1")
    connections.proven(links[0])
    links += opened(connections, "192.0.2.1")
    connections.proven(links[1])
    (idle,) = opened(connections, "192.0.2.1")
    assert [one.closed for one in (*links, idle)] == [False, False, False]
    opened(connections, "198.51.100.1")
    assert [one.closed for one in (*links, idle)] == [False, False, True]
    connections.used(links[0])  # the stream is over, and it asks again
    opened(connections, "198.51.100.2")
    opened(connections, "198.51.100.3")
    assert [one.closed for one in links] == [True, False]


def test_what_is_closed_twice_counts_once() -> None:
    connections = bounds(most=1)
    first, second = opened(connections, "192.0.2.1", "192.0.2.2")
    connections.closed(first)
    assert len(connections) == 1
    connections.closed(second)
    assert len(connections) == 0


@asynccontextmanager
async def strangers(
    b: Bench, count: int
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Connections that say nothing yet, opened one after the other."""
    made = []
    try:
        for _ in range(count):
            made.append(await asyncio.open_connection("127.0.0.1", b.served.port))
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()


async def test_a_flood_of_idle_connections_keeps_nobody_out(tmp: Path) -> None:
    async with bench(tmp / "s", max_connections_each=16) as b, strangers(b, 60) as made:
        agent = await b.agent()
        async with strangers(b, 60), asyncio.timeout(20):
            assert await made[0][0].read() == b""  # the oldest were closed
            answer = await b.client().ask("GET", "/whoami")
            assert answer.status == 200
            await agent.send(Status(paused="I am still here"))
            link = link_of(b.served, agent.id)
            await until(lambda: link.paused == "I am still here")
    text = b.served.control.metrics.render().decode()
    assert 'aegis_connections_bounded_total{done="closed"}' in text


async def test_an_event_stream_outlives_the_flood(tmp: Path) -> None:
    async with (
        bench(tmp / "s", max_connections_each=16) as b,
        strangers(b, 1) as ((reader, writer),),
    ):
        writer.write(f"GET /events HTTP/1.1\r\nHost: x\r\nX-API-Key: {MCP}\r\n\r\n".encode())
        async with asyncio.timeout(20):
            await reader.readuntil(b"event: connected")
            async with strangers(b, 60) as made:
                assert await made[0][0].read() == b""
                await b.agent()
                await reader.readuntil(b"event: agent_online")


async def test_an_address_whose_connections_all_work_is_told_to_wait(tmp: Path) -> None:
    async with (
        asyncio.timeout(20),
        bench(tmp / "s", max_connections_each=16) as b,
        strangers(b, 16) as made,
    ):
        for reader, writer in made:
            writer.write(HALF_A_BODY)
            await reader.readuntil(b"100 Continue")  # it is at work
        async with strangers(b, 1) as ((reader, _),):
            answer = await reader.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: 1" in head
        error = json.loads(body)["error"]
        assert (error["code"], error["facts"]["scope"]) == ("request.rate_limited", "connections")


async def test_there_are_never_more_connections_than_the_bound(tmp: Path) -> None:
    async with bench(tmp / "s", max_connections=64) as b, strangers(b, 200):
        gauge = b.served.control.metrics.registry
        assert (gauge.get_sample_value("aegis_connections") or 0) <= 64
        assert (await b.client(None).ask("GET", "/health")).status == 200
    await until(lambda: (gauge.get_sample_value("aegis_connections") or 0) <= 1)


def sockets_at(port: int) -> int:
    """How many sockets of this machine's programs are connected from `port`."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listens, gone = "0A", "0"
    return sum(
        int(row[1].partition(":")[2], 16) == port and row[3] != listens and row[9] != gone
        for row in rows
    )


@contextmanager
def silent_tls(port: int, count: int) -> Iterator[None]:
    """Connections whose other side, once it has shaken hands, says and answers nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as stack:
        for _ in range(count):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            stack.enter_context(context.wrap_socket(plain))
        yield


async def test_tls_connections_that_never_say_goodbye_are_bounded_too(tmp: Path) -> None:
    cert, key = a_certificate(tmp, an_authority(tmp), "127.0.0.1")
    settings = {"tls_cert_file": cert, "tls_key_file": key, "max_connections_each": 16}
    async with bench(tmp / "s", **settings) as b:
        flood = silent_tls(b.served.port, 60)
        await asyncio.to_thread(flood.__enter__)
        try:
            await until(lambda: sockets_at(b.served.port) <= 16)
        finally:
            flood.__exit__(None, None, None)


async def test_what_never_shakes_hands_is_bounded_and_keeps_nobody_out(tmp: Path) -> None:
    cert, key = a_certificate(tmp, an_authority(tmp), "127.0.0.1")
    settings = {"tls_cert_file": cert, "tls_key_file": key, "max_connections_each": 16}
    async with bench(tmp / "s", **settings) as b, strangers(b, 60) as made:
        async with asyncio.timeout(8):  # not when the time for a handshake is over
            assert await made[0][0].read() == b""
        await until(lambda: sockets_at(b.served.port) <= 16)
        context = ssl.create_default_context(cafile=tmp / "authority.pem")
        url = f"{b.served.base_url}/health"
        async with b.session.get(url, ssl=context) as answer:
            assert answer.status == 200
