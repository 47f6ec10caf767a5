"""Callers that flood, stall, stop reading or speak no HTTP: bounded in memory and time, told so."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aegis_control.http import app
from aegis_protocol.actions import Role
from control_fixtures import MCP, Bench, bench
from databases import database_kind, database_url, postgres
from structlog.testing import capture_logs

__all__ = ["database_kind", "database_url", "postgres"]

WITHIN_S = 20.0
KEY = f"X-API-Key: {MCP}\r\n".encode()
POST = b"POST /grant/request HTTP/1.1\r\nHost: x\r\n" + KEY


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    """Nothing that a stranger sends may be a crash or a traceback in the log."""
    with capture_logs() as entries:
        yield entries  # type: ignore[misc]
    events = {entry["event"] for entry in entries}
    assert "request.crashed" not in events, entries
    assert not [entry for entry in entries if entry.get("exc_info")]


@dataclass
class Answer:
    """What came before control closed the connection."""

    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1]) if self.raw else 0

    @property
    def code(self) -> str:
        _, _, body = self.raw.partition(b"\r\n\r\n")
        return str(json.loads(body)["error"]["code"])


@asynccontextmanager
async def stranger(b: Bench) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", b.served.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def told(b: Bench, *pieces: bytes) -> Answer:
    """Send `pieces` and read until control closes the connection."""
    async with stranger(b) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
        async with asyncio.timeout(WITHIN_S):
            try:
                await writer.drain()
                return Answer(await reader.read())
            except ConnectionError:
                return Answer(b"")


async def test_a_body_that_is_too_large_is_refused_by_its_length_or_as_it_comes(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        huge = b"[" + b" " * 200_000 + b"]"
        answer = await client.ask("POST", "/grant/request", data=huge)
        assert (answer.status, answer.error.code) == (413, "request.too_large")
        chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
        endless = await told(b, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 64)
        assert (endless.status, b"request.too_large" in endless.raw) == (413, True)


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(tmp: Path) -> None:
    async with bench(tmp / "s") as b, stranger(b) as (reader, writer):
        writer.write(POST + b"Content-Length: 65537\r\n\r\n{")
        async with asyncio.timeout(WITHIN_S):  # by which a slow one is told 408
            assert b" 413 " in await reader.readline()


async def test_what_could_not_be_read_of_a_request_is_not_told(tmp: Path) -> None:
    with capture_logs() as logs:
        async with bench(tmp / "s") as b:
            for long in (b"X-API-Key: aegis_sk_hidden", b"GET /hidden"):
                begins = long if long.startswith(b"GET") else b"GET /jobs HTTP/1.1\r\n" + long
                refused = await told(b, begins + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")
                assert (refused.status, b"8190" in refused.raw) == (400, True)
                assert b"hidden" not in refused.raw
    assert "request.refused" in str(logs) and "hidden" not in str(logs)


async def test_a_bomb_is_not_unpacked(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
        assert len(bomb) < 65_536
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        headers = {"Content-Encoding": "gzip"}
        answer = await b.client().ask("POST", "/grant/request", data=bomb, headers=headers)
        assert (answer.status, answer.error.code) == (400, "request.invalid")
        assert "Content-Encoding" in answer.error.message
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kb < 40_000


async def test_a_body_that_comes_too_slowly_is_told_so(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_BODY_S", 0.2)
    async with bench(tmp / "s") as b:
        answer = await told(b, POST + b"Content-Length: 100\r\n\r\n{")
        assert (answer.status, answer.code) == (408, "request.too_slow")


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    ids=["nothing", "half a header"],
)
async def test_who_never_sends_all_headers_is_told_so_and_cut(tmp: Path, sent: bytes) -> None:
    async with bench(tmp / "s", connect_timeout_s=0.3) as b:
        answer = await told(b, sent)
        assert (answer.status, answer.code) == (408, "request.too_slow")


async def test_a_connection_that_asked_is_not_cut_for_asking_slowly_again(tmp: Path) -> None:
    async with bench(tmp / "s", connect_timeout_s=0.3) as b:
        async with stranger(b) as (reader, writer):
            for _ in range(2):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                async with asyncio.timeout(WITHIN_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
                assert b" 200 " in head.split(b"\r\n")[0]
                await asyncio.sleep(0.5)  # longer than the first request may take


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a port that has none
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=[
        "tls",
        "ssh",
        "version",
        "long path",
        "header flood",
        "long header",
        "negative length",
        "two lengths",
        "bad name",
        "smuggling",
    ],
)
async def test_what_is_no_http_is_answered_as_json_and_the_connection_closed(
    tmp: Path, sent: bytes
) -> None:
    async with bench(tmp / "s") as b:
        answer = await told(b, sent)
        assert (answer.status, answer.code) == (400, "request.invalid")
        assert b"aiohttp" not in answer.raw.lower()
        assert (await b.client().ask("GET", "/health")).status == 200


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n0\r\n\r\n", b"2\r\n{}garbage\r\n0\r\n\r\n"],
)
async def test_chunks_that_are_wrong_are_refused(
    tmp: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_BODY_S", 0.3)
    async with bench(tmp / "s") as b:
        head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        at_once = await told(b, head + body)
        assert (at_once.status, at_once.code) == (400, "request.invalid")
        async with stranger(b) as (reader, writer):
            writer.write(head)
            await asyncio.sleep(0.05)  # so that the body is waited for already
            writer.write(body)
            async with asyncio.timeout(WITHIN_S):
                later = Answer(await reader.read())
        # aiohttp does not tell who waits for a body that it will never be whole
        assert (later.status, later.code) == (408, "request.too_slow")


async def test_who_leaves_in_the_middle_of_a_body_leaves_no_crash(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        for _ in range(5):
            async with stranger(b) as (_, writer):
                writer.write(POST + b"Content-Length: 100\r\n\r\n{")
                await writer.drain()
                await asyncio.sleep(0.02)  # so that control is reading
        assert (await b.client().ask("GET", "/health")).status == 200


def _unread(port: int, request: bytes) -> socket.socket:
    """A connection with the smallest window, whose peer asks and then reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(request)
    return sock


async def _until(fact: Callable[[], bool], within_s: float = WITHIN_S) -> float:
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < within_s
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_reader_that_stops_reading_an_answer_is_cut(tmp: Path) -> None:
    async with bench(tmp / "s", stall_timeout_s=1, max_waiting_jobs=1000) as b:
        operator, client = await b.client_of(Role.OPERATOR), b.client()
        for _ in range(120):
            assert (await client.request()).status == 202
        whole = len(json.dumps((await operator.ask("GET", "/jobs?limit=1000")).body))
        request = b"GET /jobs?limit=1000 HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n"
        before = _established(b.served.port)
        stalled = [_unread(b.served.port, request) for _ in range(3)]
        try:
            assert whole > 30_000
            assert _established(b.served.port) > before
            await _until(lambda: _established(b.served.port) <= before)
        finally:
            for sock in stalled:
                sock.close()
        assert (await client.ask("GET", "/health")).status == 200


async def test_an_event_stream_whose_reader_stops_is_ended(tmp: Path) -> None:
    async with bench(tmp / "s", stall_timeout_s=1, keepalive_s=0.01) as b:
        client = b.client()
        job_id = (await client.request()).body["job_id"]
        request = f"GET /signaling/{job_id}/events HTTP/1.1\r\nHost: x\r\n".encode() + KEY + b"\r\n"
        sock = await asyncio.to_thread(_unread, b.served.port, request)
        hub = b.served.control.hub
        try:
            await _until(lambda: hub.listeners(job_id) == 1)
            # keepalives fill what the kernel takes for it, then it is over
            await _until(lambda: hub.listeners(job_id) == 0, within_s=60)
        finally:
            sock.close()


async def test_a_websocket_that_says_no_hello_or_a_huge_one_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s", connect_timeout_s=0.3) as b:
        silent = b.machine("silent")
        await silent.open()
        assert await silent.refusal() == "request.invalid"
        loud = b.machine("loud")
        await loud.open()
        assert loud.socket is not None
        await loud.socket.send_str("x" * 300_000)
        message = await loud.socket.receive(timeout=WITHIN_S)
        assert message.type.name in ("CLOSE", "CLOSED", "CLOSING", "ERROR")
        assert (await b.client().ask("GET", "/health")).status == 200


def _established(port: int) -> int:
    """How many connections control has at `port` (proc(5), /proc/net/tcp)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    wanted = f":{port:04X}"
    return sum(line.split()[1].endswith(wanted) and line.split()[3] == "01" for line in lines)


async def test_the_character_nul_is_refused_wherever_it_stands(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        operator = await b.client_of(Role.OPERATOR)
        for method, path in (
            ("GET", "/jobs/%00"),
            ("GET", "/services/keys?prefix=a%00"),
            ("GET", "/services/grants?identity=%00"),
            ("DELETE", "/services/agents/lab%001"),
        ):
            answer = await operator.ask(method, path)
            assert (answer.status, answer.error.code) == (400, "request.invalid"), path
        wanted = {"role": "viewer", "name": "ci\0"}
        answer = await operator.ask("POST", "/services/keys", wanted)
        assert (answer.status, answer.error.code) == (400, "request.invalid")
        honest = await operator.ask("POST", "/services/keys", wanted | {"name": "\\u0000"})
        assert (honest.status, honest.body["name"]) == (201, "\\u0000")
        assert (await operator.ask("GET", "/health")).body["store"] == "ok"


async def test_a_flood_of_what_is_no_http_does_not_fill_the_log(
    tmp: Path, logs: list[dict[str, object]]
) -> None:
    async with bench(tmp / "s") as b:
        for _ in range(80):
            assert (await told(b, b"\0\0\0\r\n\r\n")).code == "request.invalid"
    lines = [entry for entry in logs if entry["event"] == "request.refused"]
    assert [line["log_level"] for line in lines] == ["info"] * 60 + ["debug"] * 20
