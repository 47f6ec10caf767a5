"""A headless Chromium with one blank page, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from waiting import until

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
START_S: Final = 60.0


class BrowserError(Exception):
    """A script threw, or the browser said no."""


class Browser:
    """Made by `started`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Browser]:
        """`folder` is for its profile. Ended with all of its processes in any case."""
        profile = folder / "chromium"
        with (folder / "chromium.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank",
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder)},
            )  # fmt: skip
        try:
            address = await until(lambda: _address(profile), within_s=START_S)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(address, max_msg_size=0) as socket,
            ):
                browser = cls(socket)
                reading = asyncio.create_task(browser._read(), name="devtools")
                try:
                    await browser._attach()
                    yield browser
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def run(self, script: str, *, within_s: float = 30) -> Any:
        """Return what the JavaScript expression is, or its promise is resolved to."""
        found = await self._ask(
            "Runtime.evaluate",
            within_s,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            raise BrowserError(str(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    async def _attach(self) -> None:
        targets = (await self._ask("Target.getTargets", START_S))["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = await self._ask(
            "Target.attachToTarget", START_S, targetId=page["targetId"], flatten=True
        )
        self._session = attached["sessionId"]

    async def _ask(self, method: str, within_s: float, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        words = {"id": number, "method": method, "params": params}
        if self._session:
            words["sessionId"] = self._session
        await self._socket.send_json(words)
        async with asyncio.timeout(within_s):
            found: dict[str, Any] = await answer
        if "error" in found:
            raise BrowserError(str(found["error"]))
        result: dict[str, Any] = found["result"]
        return result

    async def _read(self) -> None:
        async for message in self._socket:
            words = message.json()
            answer = self._waiting.pop(words.get("id", 0), None)
            if answer is not None and not answer.done():
                answer.set_result(words)


def _address(profile: Path) -> str | None:
    try:
        port, path = (profile / "DevToolsActivePort").read_text().splitlines()
    except (OSError, ValueError):
        return None
    return f"ws://127.0.0.1:{port}{path}"
