"""
How fast links are, and how fair: beside aiortc as it comes, libdatachannel and Chromium.

    python benchmarks/transport.py [--quick] [--only WORD]

Everything is repeated (seven times, with --quick three) and interleaved: each round measures each
thing once, so that whatever else the machine does meets all of them. A ratio is of two figures of
one round, for the same number of bytes. Stock aiortc runs on asyncio's own event loop, as it
comes, and below our queues.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from bench.report import Row, publish, row
from bench.stations import Kind, Station, is_installed, join, joined, station
from bench.udp_path import Weather

MIB: Final = 1024 * 1024
FULL_REPEATS: Final = 7
QUICK_REPEATS: Final = 3
SESSIONS: Final = 32
CROWD_TURNS: Final = 3
ENOUGH_MIB: Final = 512
"""None comes to the end of it while keys are typed."""
CROWDED_KEYS: Final = 50
IDLE_LINKS: Final = 20
Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much each measurement moves, in MiB."""

    short_path: int
    stock: int
    long_path: int
    longest_path: int
    crowd: int


FULL: Final = Sizes(short_path=96, stock=16, long_path=32, longest_path=16, crowd=192)
QUICK: Final = Sizes(short_path=48, stock=8, long_path=16, longest_path=8, crowd=96)


async def throughput(
    client: Kind, agent: Kind, size_mib: int, weather: Weather | None = None
) -> tuple[float, float]:
    """Return MB/s from the agent to the client, and the agent's CPU s for a MiB."""
    async with joined(client, agent, weather) as (near, far, _):
        return await stream(near, far, size_mib)


async def stream(near: Station, far: Station, size_mib: int, peer: int = 0) -> tuple[float, float]:
    words = {"peer": peer} if peer else {}
    received, sent = await asyncio.gather(
        near.ask("receive", size_bytes=size_mib * MIB, **words),
        far.ask("send", size_bytes=size_mib * MIB, **words),
    )
    return size_mib * MIB / received["seconds"] / 1e6, sent["cpu_s"] / size_mib


async def short_path(sizes: Sizes) -> Figures:
    found: Figures = {}
    for kind in (Kind.OURS, Kind.STOCK, Kind.DATACHANNEL):
        if is_installed(kind):
            size = sizes.stock if kind is Kind.STOCK else sizes.short_path
            found[f"{kind} MB/s"], found[f"{kind} CPU"] = await throughput(kind, kind, size)
    found["ours of stock's size MB/s"], _ = await throughput(Kind.OURS, Kind.OURS, sizes.stock)
    return found


async def to_chromium(sizes: Sizes) -> Figures:
    found: Figures = {}
    if is_installed(Kind.CHROMIUM):
        for kind in (Kind.OURS, Kind.DATACHANNEL, Kind.STOCK):
            if is_installed(kind):
                size = sizes.stock if kind is Kind.STOCK else sizes.short_path // 2
                found[f"{kind} to Chromium"], _ = await throughput(Kind.CHROMIUM, kind, size)
    return found


async def long_path(sizes: Sizes) -> Figures:
    weather = Weather(delay_s=0.05)
    found: Figures = {}
    for kind in (Kind.OURS, Kind.DATACHANNEL):
        if is_installed(kind):
            found[f"{kind} at 100 ms"], _ = await throughput(kind, kind, sizes.long_path, weather)
    for kind, name in ((Kind.STOCK, "stock"), (Kind.OURS, "ours of stock's size")):
        found[f"{name} at 100 ms"], _ = await throughput(kind, kind, sizes.longest_path, weather)
    return found


async def longest_path(sizes: Sizes) -> Figures:
    weather = Weather(delay_s=0.25)
    rate, _ = await throughput(Kind.OURS, Kind.OURS, sizes.longest_path, weather)
    return {"ours at 500 ms": rate}


async def lossy_path(sizes: Sizes) -> Figures:
    weather = Weather(delay_s=0.01, loss=0.01)
    found: Figures = {}
    for kind in (Kind.OURS, Kind.DATACHANNEL):
        if is_installed(kind):
            found[f"{kind} at 1 % loss"], _ = await throughput(kind, kind, 4, weather)
    return found


async def keystrokes(sizes: Sizes) -> Figures:
    found: Figures = {}
    for kind in (Kind.OURS, Kind.STOCK):
        async with joined(kind, kind) as (near, far, _):
            await far.ask("echo")
            bulk = asyncio.create_task(stream(near, far, ENOUGH_MIB))
            waits = (await near.ask("keys", count=100, pause_s=0.01))["waits_s"]
            bulk.cancel()
            found[f"{kind} keystroke ms"] = 1000 * quantiles(waits, n=20)[-1]
    return found


async def crowd(sizes: Sizes) -> Figures:
    """
    One session's rate, and that of 32 at once, between the same two processes: by turns, so that
    both meet the same machine, and after each has had a first MiB to find the path's width.
    """
    each = max(1, sizes.crowd // SESSIONS)
    alone_s = together_s = 0.0
    indexes = []
    async with station(Kind.OURS) as near, station(Kind.OURS) as far:
        for peer in range(SESSIONS):
            await join(near, far, peer=peer)
        await asyncio.gather(*(stream(near, far, 1, peer) for peer in range(SESSIONS)))
        for _ in range(CROWD_TURNS):
            began = time.perf_counter()
            await stream(near, far, SESSIONS * each)
            alone_s += time.perf_counter() - began
            began = time.perf_counter()
            found = await asyncio.gather(
                *(stream(near, far, each, peer) for peer in range(SESSIONS))
            )
            together_s += time.perf_counter() - began
            indexes.append(jain([rate for rate, _ in found]))
    return {"32 sessions over one": alone_s / together_s, "Jain's index": median(indexes)}


def jain(rates: list[float]) -> float:
    """1 where all have the same; one over their number where one has all."""
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


async def crowded_keystrokes(sizes: Sizes) -> Figures:
    """Keystrokes of one session while 32 others stream between the same two processes."""
    found: Figures = {}
    for kind in (Kind.OURS, Kind.STOCK):
        async with station(kind) as near, station(kind) as far:
            for peer in range(SESSIONS + 1):
                await join(near, far, peer=peer)
            await far.ask("echo")
            async with asyncio.TaskGroup() as group:
                bulk = [
                    group.create_task(stream(near, far, ENOUGH_MIB, peer))
                    for peer in range(1, SESSIONS + 1)
                ]
                while await total(near) < SESSIONS * MIB // 4:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.05)
                # Asking takes a while, in which bytes go on to come: from question to question.
                began, before_bytes = time.perf_counter(), await total(near)
                waits = (await near.ask("keys", count=CROWDED_KEYS, pause_s=0.01))["waits_s"]
                took_s = time.perf_counter() - began
                moved_bytes = await total(near) - before_bytes
                for task in bulk:
                    task.cancel()
        found[f"{kind} crowded keystroke ms"] = 1000 * quantiles(waits, n=20)[-1]
        found[f"{kind} crowded bulk"] = moved_bytes / took_s / 1e6
    return found


async def total(near: Station) -> int:
    """What all sessions have received so far."""
    peers = range(1, SESSIONS + 1)
    return sum(found["size_bytes"] for found in [await near.ask("got", peer=n) for n in peers])


async def opening(sizes: Sizes) -> Figures:
    found: Figures = {}
    for kind in (Kind.OURS, Kind.STOCK):
        async with joined(kind, kind, Weather(delay_s=0.05)) as (_, _, open_s):
            found[f"{kind} open in RTTs"] = open_s / 0.1
    return found


async def vanishing(sizes: Sizes) -> Figures:
    async with joined(Kind.OURS, Kind.OURS) as (near, far, _):
        ending = asyncio.create_task(near.ask("end"))
        await stream(near, far, 8)
        killed_at = time.monotonic()
        far.process.send_signal(signal.SIGKILL)
        return {"vanished s": (await ending)["ended_at"] - killed_at}


async def idle(sizes: Sizes) -> Figures:
    async with station(Kind.OURS) as near, station(Kind.OURS) as far:
        await join(near, far)
        before = (await far.ask("memory"))["resident_bytes"]
        for peer in range(1, IDLE_LINKS + 1):
            await join(near, far, peer=peer)
        after = (await far.ask("memory"))["resident_bytes"]
    return {"idle KB": (after - before) / IDLE_LINKS / 1000}


MEASUREMENTS: Final[tuple[Callable[[Sizes], Awaitable[Figures]], ...]] = (
    short_path,
    to_chromium,
    long_path,
    longest_path,
    lossy_path,
    keystrokes,
    crowd,
    crowded_keystrokes,
    opening,
    vanishing,
    idle,
)


def rows_of(found: dict[str, list[float]]) -> list[Row]:
    def over(above: str, below: str) -> list[float]:
        pairs = zip(found.get(above, []), found.get(below, []), strict=False)
        return [a / b for a, b in pairs]

    other = Kind.DATACHANNEL
    wanted: list[tuple[str, list[float], str, str, float | None]] = [
        (
            "agent to Chromium, over libdatachannel's",
            over("ours to Chromium", f"{other} to Chromium"),
            "ratio",
            "higher",
            1.0,
        ),
        (
            "agent to espctl, over libdatachannel to itself",
            over("ours MB/s", f"{other} MB/s"),
            "ratio",
            "higher",
            0.75,
        ),
        (
            "agent to espctl, over stock aiortc",
            over("ours of stock's size MB/s", "aiortc MB/s"),
            "ratio",
            "higher",
            None,
        ),
        (
            "sender's CPU for a MiB, over libdatachannel's",
            over("ours CPU", f"{other} CPU"),
            "ratio",
            "lower",
            1.6,
        ),
        (
            "100 ms RTT, over libdatachannel",
            over("ours at 100 ms", f"{other} at 100 ms"),
            "ratio",
            "higher",
            0.9,
        ),
        (
            "100 ms RTT, over stock aiortc",
            over("ours of stock's size at 100 ms", "stock at 100 ms"),
            "ratio",
            "higher",
            None,
        ),
        ("500 ms RTT", found.get("ours at 500 ms", []), "MB/s", "higher", 0.6),
        (
            "20 ms RTT and 1 % loss, over libdatachannel",
            over("ours at 1 % loss", f"{other} at 1 % loss"),
            "ratio",
            "higher",
            None,
        ),
        (
            "keystroke p95 while firmware streams",
            found.get("ours keystroke ms", []),
            "ms",
            "lower",
            6.0,
        ),
        (
            "keystroke p95, over stock aiortc",
            over("ours keystroke ms", "aiortc keystroke ms"),
            "ratio",
            "lower",
            None,
        ),
        (
            "keystroke p95 with 32 bulk sessions, over stock aiortc",
            over("ours crowded keystroke ms", "aiortc crowded keystroke ms"),
            "ratio",
            "lower",
            1.2,
        ),
        (
            "throughput of those 32, over stock aiortc",
            over("ours crowded bulk", "aiortc crowded bulk"),
            "ratio",
            "higher",
            3.0,
        ),
        (
            "32 sessions' sum over one session's",
            found.get("32 sessions over one", []),
            "ratio",
            "higher",
            0.9,
        ),
        ("Jain's index of 32 sessions", found.get("Jain's index", []), "", "higher", 0.98),
        ("answer to open at 100 ms RTT", found.get("ours open in RTTs", []), "RTTs", "lower", 4.8),
        ("a vanished peer noticed", found.get("vanished s", []), "s", "lower", 8.0),
        ("memory per idle connection", found.get("idle KB", []), "KB", "lower", 250.0),
    ]
    rows = [row(name, runs, unit, better, bar) for name, runs, unit, better, bar in wanted if runs]  # type: ignore[arg-type]
    rows += [
        row(name, runs, "MB/s", "higher")
        for name, runs in sorted(found.items())
        if name.endswith(("MB/s", "at 100 ms", "to Chromium", "crowded bulk"))
    ]
    return rows


async def main(options: argparse.Namespace) -> int:
    """Measure, and print the table; returns 1 when some of it could not be measured."""
    sizes, repeats = (QUICK, QUICK_REPEATS) if options.quick else (FULL, FULL_REPEATS)
    chosen = [measure for measure in MEASUREMENTS if options.only in measure.__name__]
    for kind in Kind:
        if not is_installed(kind):
            sys.stderr.write(f"{kind} is not installed (make bench-setup): left out\n")
    failed = 0
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeats):
        for measure in chosen:
            began = time.perf_counter()
            try:
                for name, value in (await measure(sizes)).items():
                    found[name].append(value)
            except* (TimeoutError, ConnectionError) as exc:
                failed = 1
                why = "; ".join(repr(one) for one in exc.exceptions)
                sys.stderr.write(f"{measure.__name__} failed in this round: {why}\n")
            took_s = time.perf_counter() - began
            sys.stderr.write(f"{turn + 1}/{repeats} {measure.__name__}: {took_s:.1f} s\n")
    publish("transport", rows_of(found))
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="three repeats of less")
    parser.add_argument("--only", default="", help="those whose name has this word in it")
    sys.exit(asyncio.run(main(parser.parse_args())))
