"""
How fast control grants and dispatches, and how it grows with its agents.

    python benchmarks/control.py [--quick] [--only WORD]

Control is a process of its own with its usual settings; its CPU and memory are what the kernel
says. The agents are simulated in another process, each with its own key, hello and WebSocket;
they answer pings, and offers as a working agent does. Times of grants and offers go from the
client's first byte to the answer's last, or to the frame's arrival at the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import aiohttp
from bench.control_stand import MCP, Running, enroll, fleet, link, running
from bench.decision import decision_ms
from bench.growth_plot import draw
from bench.postgres import a_server
from bench.report import FOLDER, Row, publish, row
from bench.stations import Station

FINGERPRINT: Final = "sha-256:" + ":".join(f"{n:02X}" for n in range(32))
OFFER_SDP: Final = "\r\n".join(
    [
        *("v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0"),
        *("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0"),
        f"a=fingerprint:sha-256 {FINGERPRINT.removeprefix('sha-256:')}",
        *("a=setup:actpass", "a=sctp-port:5000"),
        *["a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host"] * 16,
        "",
    ]
)
SETTLE_S: Final = 3.0
SPARE_FILES: Final = 500
Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """window_s: how long CPU is counted; grants_s and dispatch_s: how long requests are sent."""

    repeats: int
    fleets: tuple[int, ...]
    window_s: float
    grants_s: float
    dispatch_s: float
    clients: int = 16
    rate: float = 20.0
    dispatch_agents: int = 1000
    grant_agents: int = 100


FULL: Final = Sizes(repeats=3, fleets=(100, 1000, 5000), window_s=30, grants_s=10, dispatch_s=30)
QUICK: Final = Sizes(repeats=1, fleets=(100, 1000), window_s=10, grants_s=4, dispatch_s=10)


@dataclass(frozen=True)
class Stand:
    control: Running
    agents: Station
    session: aiohttp.ClientSession
    socket: Path

    async def key(self) -> str:
        """A new API key, by the operators' socket."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as local,
            local.post("http://control/services/keys", json={"role": "builder"}) as answer,
        ):
            return str((await answer.json())["key"])

    async def grant(self, key: str = MCP, **fields: Any) -> dict[str, Any]:
        """POST /grant/request; anything but a grant fails the measurement."""
        body = {
            "peer_fingerprint": FINGERPRINT,
            "required_channels": ["espctl", "source", "pty", "firmware"],
            "target": "esp32p4",
            "cpu_cores": 1.0,
            "memory_mb": 512,
        } | fields
        async with self.session.post(
            f"{self.control.base_url}/grant/request",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
        ) as answer:
            found: dict[str, Any] = await answer.json()
            if answer.status != 200:
                raise ConnectionError(f"no grant: {answer.status} {found}")
            return found

    async def offer(self, grant: dict[str, Any]) -> str:
        """Post an offer, and return its grant's id."""
        async with self.session.post(
            f"{self.control.base_url}/signaling/{grant['job_id']}/offer",
            json={"sdp": OFFER_SDP, "type": "offer"},
            headers={"Authorization": f"Bearer {grant['grant']}"},
        ) as answer:
            found = await answer.json()
            if answer.status != 202:
                raise ConnectionError(f"the offer was refused: {answer.status} {found}")
            return str(found["jti"])


@asynccontextmanager
async def stand(enrolled: int, database_url: str | None = None) -> AsyncIterator[Stand]:
    """A fresh control with agents enrolled, none of them linked."""
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as name:
        folder = Path(name)
        await enroll(database_url or f"sqlite+aiosqlite:///{folder / 'control.db'}", enrolled)
        async with (
            running(folder, database_url) as control,
            fleet() as agents,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            yield Stand(control, agents, session, folder / "control.sock")


async def growth(sizes: Sizes) -> Figures:
    found: Figures = {}
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
    sizes_here = [count for count in sizes.fleets if count <= limit]
    async with stand(max(sizes_here)) as made:
        await asyncio.sleep(SETTLE_S)
        found["KiB with 0 agents"] = made.control.resident_kib
        for count in sizes_here:
            await link(made.agents, made.control, count)
            await asyncio.sleep(SETTLE_S)
            found[f"CPU % of {count} idle agents"] = await made.control.cpu_share(sizes.window_s)
            found[f"KiB with {count} agents"] = made.control.resident_kib
            if (await made.agents.ask("linked"))["agents"] != count:
                raise ConnectionError("an agent lost its link")
    found["KiB per agent"] = (found["KiB with 1000 agents"] - found["KiB with 100 agents"]) / 900
    return found


async def dispatch(sizes: Sizes) -> Figures:
    """Requests come at their rate whether or not the one before was answered."""
    granted_s: list[float] = []
    posted: dict[str, float] = {}
    async with stand(sizes.dispatch_agents) as made:
        await link(made.agents, made.control, sizes.dispatch_agents)
        await asyncio.sleep(SETTLE_S)

        async def one() -> None:
            began = time.monotonic()
            grant = await made.grant()
            granted_s.append(time.monotonic() - began)
            began = time.monotonic()
            posted[await made.offer(grant)] = began

        await one()  # opens the connection, and imports what is imported late
        await made.agents.ask("offers")
        granted_s.clear()
        posted.clear()
        cpu_s, began = made.control.cpu_s, time.monotonic()
        async with asyncio.TaskGroup() as group:
            for turn in range(int(sizes.dispatch_s * sizes.rate)):
                await asyncio.sleep(max(0.0, began + turn / sizes.rate - time.monotonic()))
                group.create_task(one())
        cpu_s = made.control.cpu_s - cpu_s
        await asyncio.sleep(1)
        arrived = (await made.agents.ask("offers"))["offers"]
    offered_s = [arrived[jti] - at for jti, at in posted.items()]
    found = {"dispatch CPU ms": 1000 * cpu_s / len(offered_s)}
    for name, waits in (("grant", granted_s), ("offer", offered_s)):
        cuts = quantiles(waits, n=100)
        found |= {f"{name} p50 ms": 1000 * cuts[49], f"{name} p99 ms": 1000 * cuts[98]}
    return found


async def grants_on_sqlite(sizes: Sizes) -> Figures:
    return await grants_on("SQLite", None, sizes)


async def grants_on_postgresql(sizes: Sizes) -> Figures:
    with a_server(durable=True) as server:
        return await grants_on("PostgreSQL", server.url(), sizes)


async def grants_on(store: str, database_url: str | None, sizes: Sizes) -> Figures:
    """Clients with a key each, that ask for the next job as soon as they have a grant."""
    async with stand(sizes.grant_agents, database_url) as made:
        await link(made.agents, made.control, sizes.grant_agents, slots=256)
        keys = [await made.key() for _ in range(sizes.clients)]
        await made.grant()
        count = 0
        until = time.monotonic() + sizes.grants_s

        async def client(key: str) -> None:
            nonlocal count
            while time.monotonic() < until:
                await made.grant(key)
                count += 1

        cpu_s, began = made.control.cpu_s, time.monotonic()
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(client(key))
        took_s, cpu_s = time.monotonic() - began, made.control.cpu_s - cpu_s
    return {
        f"grants/s on {store}": count / took_s,
        f"CPU ms of a grant on {store}": 1000 * cpu_s / count,
    }


async def decision(sizes: Sizes) -> Figures:
    """One tick of the scheduler, by itself."""
    return await asyncio.to_thread(decision_ms)


MEASUREMENTS: Final[tuple[Callable[[Sizes], Awaitable[Figures]], ...]] = (
    growth,
    dispatch,
    grants_on_sqlite,
    grants_on_postgresql,
    decision,
)

BARS: Final = (
    ("grants a second, SQLite", "grants/s on SQLite", "1/s", "higher", 100),
    ("grants a second, PostgreSQL", "grants/s on PostgreSQL", "1/s", "higher", 100),
    ("control's CPU for a grant, SQLite", "CPU ms of a grant on SQLite", "ms", "lower", None),
    (
        "control's CPU for a grant, PostgreSQL",
        "CPU ms of a grant on PostgreSQL",
        "ms",
        "lower",
        None,
    ),
    ("request to its 200 at 20/s, 1,000 agents, p50", "grant p50 ms", "ms", "lower", 10),
    ("request to its 200 at 20/s, 1,000 agents, p99", "grant p99 ms", "ms", "lower", 50),
    ("offer posted to job.offer at the agent, p50", "offer p50 ms", "ms", "lower", 10),
    ("offer posted to job.offer at the agent, p99", "offer p99 ms", "ms", "lower", 50),
    ("control's CPU for a grant, its offer and its job", "dispatch CPU ms", "ms", "lower", None),
    ("memory per agent, from 100 to 1,000", "KiB per agent", "KiB", "lower", 60),
    ("CPU of 100 idle agents", "CPU % of 100 idle agents", "% of a core", "lower", None),
    ("1,000 agents, 500 jobs: one tick", "tick ms with room", "ms of CPU", "lower", 20),
    ("the same, none placed, all explained", "tick ms all full", "ms of CPU", "lower", 20),
    ("CPU of 1,000 idle agents", "CPU % of 1000 idle agents", "% of a core", "lower", 5),
    ("CPU of 5,000 idle agents", "CPU % of 5000 idle agents", "% of a core", "lower", None),
    ("memory with no agent", "KiB with 0 agents", "KiB", "lower", None),
    ("memory with 100 agents", "KiB with 100 agents", "KiB", "lower", None),
    ("memory with 1,000 agents", "KiB with 1000 agents", "KiB", "lower", None),
    ("memory with 5,000 agents", "KiB with 5000 agents", "KiB", "lower", None),
)


def rows_of(found: dict[str, list[float]]) -> list[Row]:
    return [
        row(name, found[figure], unit, better, bar)  # type: ignore[arg-type]
        for name, figure, unit, better, bar in BARS
        if figure in found
    ]


async def main(options: argparse.Namespace) -> int:
    """Measure, and print the table; returns 1 when some of it could not be measured."""
    sizes = QUICK if options.quick else FULL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    failed = 0
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(sizes.repeats):
        for measure in MEASUREMENTS:
            if options.only not in measure.__name__:
                continue
            began = time.perf_counter()
            try:
                for name, value in (await measure(sizes)).items():
                    found[name].append(value)
            except* (TimeoutError, OSError, aiohttp.ClientError) as exc:
                failed = 1
                why = "; ".join(str(one) or repr(one) for one in exc.exceptions)
                sys.stderr.write(f"{measure.__name__} failed in this round: {why}\n")
            took_s = time.perf_counter() - began
            sys.stderr.write(f"{turn + 1}/{sizes.repeats} {measure.__name__}: {took_s:.1f} s\n")
    publish("control", rows_of(found))
    if plot := draw(found, sizes.fleets, FOLDER / "control-growth.png"):
        sys.stdout.write(f"{plot}\n")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="once, for a shorter time, no 5,000")
    parser.add_argument("--only", default="", help="those whose name has this word in it")
    sys.exit(asyncio.run(main(parser.parse_args())))
