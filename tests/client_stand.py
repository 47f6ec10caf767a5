"""What the tests of `espctl` share: a fake control in a thread, and the command line run here."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aegis_client.cli import main
from fake_agent import FakeAgent
from fake_control import KEY, FakeControl

T = TypeVar("T")


class Served:
    """A FakeControl that runs in a thread of its own; `do` runs something on its loop."""

    def __init__(self) -> None:
        self.control: FakeControl
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    @property
    def agent(self) -> FakeAgent:
        return self.control.agent

    def do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def call(self, function: Callable[[], object]) -> None:
        """Call something on the control's loop."""
        self._loop.call_soon_threadsafe(function)

    @contextmanager
    def running(self) -> Iterator[Served]:
        ready = threading.Event()

        async def serve() -> None:
            async with FakeControl.running() as self.control:
                ready.set()
                await self._stop.wait()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run, name="fake-control")
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


class Espctl:
    """Runs commands in this process, with an environment that points at a control."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        url: str,
        tmp: Path,
    ) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self.store = tmp / "store"
        self.set(ESPCTL_URL=url, MCP_AUTH_SECRET=KEY, AEGIS_STORE=str(self.store))

    def set(self, **env: str | None) -> None:
        for name, value in env.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, value)

    def __call__(self, *args: str | Path) -> Ended:
        self._capfd.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["espctl", *map(str, args)])
        code = main()
        caught = self._capfd.readouterr()
        return Ended(code, caught.out, caught.err)


def project(folder: Path) -> Path:
    """A small project with a nested folder."""
    (folder / "src").mkdir(parents=True)
    (folder / "platformio.ini").write_text("[env:esp32p4]\n")
    (folder / "src" / "main.c").write_text("int main(void) { return 0; }\n")
    return folder
