"""
A network path as a UDP proxy between two peers of one machine: delay, loss, copies, disorder.

The proxy stands in both session descriptions in the place of the peers' own addresses. Each side
then knows the other by an address of the proxy alone, so nothing goes around it.

    python benchmarks/bench/udp_path.py    reads {"delay_s": …, "loss": …}, then {"offer": …} and
                                     {"answer": …} as lines of JSON, and writes each as the other
                                     side shall see it
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

_CANDIDATE: Final = re.compile(
    r"^a=candidate:(?P<head>\S+ 1 (?:udp|UDP) \d+) (?P<host>[\d.]+) (?P<port>\d+) typ host.*$",
    re.MULTILINE,
)
_ANY_CANDIDATE: Final = re.compile(r"^a=candidate:.*\r?\n", re.MULTILINE)
_BUFFER_BYTES: Final = 4 * 1024 * 1024
_MAX_WAITING: Final = 16_384
_BATCH: Final = 64
_TIMER_S: Final = 0.0002
QUEUE_S: Final = 2.0
"""As much as the box at the end of a slow line keeps."""


@dataclass(frozen=True)
class Weather:
    """
    What a path does to each datagram, in each direction; shares are from 0 to 1.

    delay_s      how long it takes
    disordered   this share takes `disorder_s` longer
    bytes_per_s  how fast the narrowest piece of it is, 0: fast; what waits there for longer than
                 QUEUE_S is lost
    """

    delay_s: float = 0.0
    loss: float = 0.0
    copied: float = 0.0
    disordered: float = 0.0
    disorder_s: float = 0.003
    seed: int = 1
    bytes_per_s: float = 0.0


class UdpPath:
    """Between an offering and an answering peer. `blocked` swallows everything."""

    def __init__(self, weather: Weather) -> None:
        self.blocked = False
        self.dropped = 0
        self.passed = 0
        self._weather = weather
        self._random = random.Random(weather.seed)  # noqa: S311  weather, no secret
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[float, int, _Leg, bytes]] = []
        self._order = 0
        self._handle: asyncio.TimerHandle | None = None
        self._faces = (_Face(), _Face())

    @classmethod
    @asynccontextmanager
    async def through(cls, weather: Weather | None = None) -> AsyncIterator[UdpPath]:
        path = cls(weather or Weather())
        try:
            yield path
        finally:
            path._close()

    def of_offer(self, sdp: str) -> str:
        """Return the offer as the answering peer shall see it."""
        return self._rewrite(sdp, 0)

    def of_answer(self, sdp: str) -> str:
        return self._rewrite(sdp, 1)

    def _rewrite(self, sdp: str, side: int) -> str:
        found = _CANDIDATE.search(sdp)
        if found is None:
            raise ValueError("the description has no IPv4 host candidate")
        face = self._faces[side]
        face.stand_in_for((found["host"], int(found["port"])))
        self._loop.add_reader(face.socket.fileno(), self._readable, face, self._faces[1 - side])
        host, port = face.address
        before, *after = _ANY_CANDIDATE.split(sdp)
        line = f"a=candidate:{found['head']} {host} {port} typ host\r\n"
        return before + line + "".join(after)

    def _readable(self, face: _Face, beyond: _Face) -> None:
        # What is sent to the stand-in of one peer reaches it from the stand-in of the other.
        for _ in range(_BATCH):
            try:
                datagram = face.socket.recv(65536)
            except (BlockingIOError, ConnectionRefusedError):
                break
            self._carry(datagram, _Leg(beyond, face))

    def _carry(self, datagram: bytes, leg: _Leg) -> None:
        weather, chance = self._weather, self._random.random
        lost = weather.loss and chance() < weather.loss
        if self.blocked or lost or len(self._waiting) >= _MAX_WAITING:
            self.dropped += 1
            return
        self.passed += 1
        for _ in range(2 if weather.copied and chance() < weather.copied else 1):
            delay_s = weather.delay_s + self._queued_s(leg, len(datagram))
            if delay_s > weather.delay_s + QUEUE_S:
                self.dropped += 1
                return
            if weather.disordered and chance() < weather.disordered:
                delay_s += weather.disorder_s
            if delay_s:
                self._hold(delay_s, datagram, leg)
            else:
                leg.send(datagram)

    def _queued_s(self, leg: _Leg, size_bytes: int) -> float:
        """How long a datagram takes to get through the narrowest piece, behind those before it."""
        if not self._weather.bytes_per_s:
            return 0.0
        now = self._loop.time()
        free_at = max(now, leg.to.free_at) + size_bytes / self._weather.bytes_per_s
        if free_at - now <= QUEUE_S:
            leg.to.free_at = free_at
        return free_at - now

    def _hold(self, delay_s: float, datagram: bytes, leg: _Leg) -> None:
        self._order += 1
        due_at = self._loop.time() + delay_s
        heapq.heappush(self._waiting, (due_at, self._order, leg, datagram))
        if self._handle is None:
            self._handle = self._loop.call_at(due_at, self._due)

    def _due(self) -> None:
        now = self._loop.time() + _TIMER_S
        while self._waiting and self._waiting[0][0] <= now:
            _, _, leg, datagram = heapq.heappop(self._waiting)
            leg.send(datagram)
        self._handle = self._loop.call_at(self._waiting[0][0], self._due) if self._waiting else None

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        for face in self._faces:
            self._loop.remove_reader(face.socket.fileno())
            face.socket.close()


class _Face:
    """The socket that stands in for one peer, in the eyes of the other."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self.peer: tuple[str, int] | None = None
        self.free_at = 0.0
        """When all that is on its way to that peer is through the narrowest piece."""

    def stand_in_for(self, peer: tuple[str, int]) -> None:
        self.peer = peer
        if self.address[1] == 0:
            self.socket.bind((peer[0], 0))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()
        return str(host), int(port)


@dataclass(frozen=True)
class _Leg:
    """Out by one socket, to the peer that another stands in for."""

    by: _Face
    to: _Face

    def send(self, datagram: bytes) -> None:
        if self.to.peer is not None:
            with suppress(OSError):  # a full socket or a closed one: it is lost
                self.by.socket.sendto(datagram, self.to.peer)


async def main() -> None:
    """Carry between two peers that other programs run, until stdin ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    weather = Weather(**json.loads(await lines.readline()))
    async with UdpPath.through(weather) as path:
        while line := await lines.readline():
            words: dict[str, Any] = json.loads(line)
            seen = {
                kind: (path.of_offer if kind == "offer" else path.of_answer)(sdp)
                for kind, sdp in words.items()
            }
            sys.stdout.write(json.dumps(seen) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
