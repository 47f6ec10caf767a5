"""A control of its own process for a measurement, what the kernel says of it, and its agents."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_control.store import agents
from aegis_control.store.database import Database
from aegis_protocol.ids import public_id
from aegis_protocol.signing import public_bytes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.stations import PEERS, Station, answering

MCP: Final = "the secret of a measurement's clients"
READY_S: Final = 60.0
LINK_BATCH: Final = 250
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Running:
    """A control that listens."""

    process: Process
    base_url: str

    @property
    def resident_kib(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ConnectionError("control ended")

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU so far, its own and the kernel's for it."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS

    async def cpu_share(self, for_s: float) -> float:
        """The share of one core that it takes, in percent, over the next `for_s`."""
        cpu_s, began = self.cpu_s, time.monotonic()
        await asyncio.sleep(for_s)
        return 100 * (self.cpu_s - cpu_s) / (time.monotonic() - began)


@asynccontextmanager
async def running(folder: Path, database_url: str | None) -> AsyncIterator[Running]:
    """A control with its state in `folder`; SQLite there, unless a URL is given."""
    (folder / "etc").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AEGIS_CONFIG_DIR": str(folder / "etc"),
        "AEGIS_STATE_DIR": str(folder),
        "AEGIS_LISTEN": "127.0.0.1:0",
        "MCP_AUTH_SECRET": MCP,
        "AEGIS_MAX_WAITING_JOBS": "1000000",
        "AEGIS_RATE_PER_KEY": "1000000/second",
        "AEGIS_RATE_PER_ADDRESS": "1000000/second",
        "PYTHONUNBUFFERED": "1",
    }
    if database_url is not None:
        environment["AEGIS_DATABASE_URL"] = database_url
    if loop := os.environ.get("AEGIS_EVENT_LOOP"):
        environment["AEGIS_EVENT_LOOP"] = loop
    with (folder / "control.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aegis_control", "serve"),
            stdout=PIPE,
            stderr=log,
            env=environment,
        )
        try:
            yield Running(process, await _address(process, folder))
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _address(process: Process, folder: Path) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(READY_S):
        async for line in process.stdout:
            if b" listens on " in line:
                return line.decode().rpartition(" ")[2].strip()
    raise ConnectionError((folder / "control.log").read_text()[-2000:])


async def enroll(database_url: str, count: int) -> None:
    """Enrol so many agents, by the keys that `agent_fleet.py` gives them."""
    async with Database.open(database_url) as database, database.write() as conn:
        for number in range(1, count + 1):
            key = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
            public = public_bytes(key)
            name = f"agent-{number}"
            await agents.enroll(conn, public_id(public), name, public, now_s=time.time())


@asynccontextmanager
async def fleet() -> AsyncIterator[Station]:
    """The process with the simulated agents; none of them is linked yet."""
    async with answering([sys.executable, str(PEERS / "agent_fleet.py")], dict(os.environ)) as made:
        yield made


async def link(made: Station, control: Running, up_to: int, *, slots: int = 4) -> None:
    """Link agents until there are `up_to`, some at a time."""
    count = (await made.ask("linked"))["agents"]
    while count < up_to:
        count = min(up_to, count + LINK_BATCH)
        answer = await made.ask("link", base_url=control.base_url, up_to=count, slots=slots)
        if "failed" in answer:
            raise ConnectionError(answer["failed"])
