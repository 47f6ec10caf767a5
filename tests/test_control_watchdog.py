"""systemd's watchdog is fed while work goes through, and not when something stands still."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aegis_control.watchdog import watchdog_s
from control_fixtures import bench
from structlog.testing import capture_logs
from waiting import until

FED = b"WATCHDOG=1"


@pytest.fixture
def manager(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd would hear; it wants a word every 0.6 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp / "notify"))
        heard.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield heard


def words(heard: socket.socket) -> list[bytes]:
    """All that was said since the last look."""
    found = []
    while True:
        try:
            found.append(heard.recv(100))
        except BlockingIOError:
            return found


async def test_a_control_that_works_feeds_it(tmp: Path, manager: socket.socket) -> None:
    async with bench(tmp / "s"):
        for _ in range(2):
            await until(lambda: FED in words(manager))


async def test_a_transaction_that_never_ends_starves_it_until_it_does(
    tmp: Path, manager: socket.socket
) -> None:
    with capture_logs() as logs:
        async with bench(tmp / "s") as b:
            async with b.served.control.database.write():
                await until(lambda: any(log["event"] == "watchdog.starved" for log in logs))
                words(manager)
                starved = len(logs)
                await until(lambda: len(logs) > starved)
                assert FED not in words(manager)
            await until(lambda: FED in words(manager))


async def test_a_scheduler_that_stands_still_starves_it(tmp: Path, manager: socket.socket) -> None:
    with capture_logs() as logs:
        async with bench(tmp / "s") as b:
            async with b.served.control.placement._open_jobs._refreshing:
                await until(lambda: any(log["event"] == "watchdog.starved" for log in logs))
            words(manager)
            await until(lambda: FED in words(manager))


def test_nobody_watches_without_systemd_or_for_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
    monkeypatch.delenv("WATCHDOG_PID")
    assert watchdog_s() == 60.0
