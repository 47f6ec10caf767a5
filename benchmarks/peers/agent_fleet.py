"""
Many simulated agents in a process of their own: real keys, real hello, real WebSockets.

Reads one JSON object per line and answers each with one, by its id; `do` is the name of a method
below. An agent answers pings, answers an offer as a working one does, and ends the job at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
from aegis_links import event_loop
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.board import Board
from aegis_protocol.control_link import Hello, JobAccepted, JobMoved, Pong, SignalAnswer
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.ids import new_id, public_id
from aegis_protocol.signing import b64, link_statement, public_bytes
from aegis_protocol.states import JobState
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OPENING_AT_ONCE: Final = 16
LINK_LIMIT_S: Final = 60.0
TARGETS: Final = ("esp32", "esp32c3", "esp32c6", "esp32p4", "esp32s3")
ANSWER_SDP: Final = "v=0\r\n" + "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\n" * 16


class SimulatedAgent:
    """One enrolled agent; `number` makes its name and its key."""

    def __init__(self, number: int, slots: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
        self._number = number
        self._slots = slots
        self._instance = new_id()
        self.offered_at: dict[str, float] = {}
        self.is_linked = False

    async def live(
        self, session: aiohttp.ClientSession, base_url: str, opening: asyncio.Semaphore
    ) -> None:
        """Hold one link until it ends."""
        async with opening:
            socket = await session.ws_connect(
                f"{base_url}/agents/link", compress=0, autoping=True, max_msg_size=262_144
            )
            challenge = json.loads(await socket.receive_str(timeout=LINK_LIMIT_S))
            hello = self._hello(challenge["nonce"], challenge["base_url"])
            await socket.send_str(hello.model_dump_json())
            welcome = json.loads(await socket.receive_str(timeout=LINK_LIMIT_S))
        if welcome["type"] != "welcome":
            raise ConnectionError(f"control said {welcome}")
        self.is_linked = True
        try:
            async for message in socket:
                await self._take(socket, json.loads(message.data))
        finally:
            self.is_linked = False

    def _hello(self, nonce: str, base_url: str) -> Hello:
        public = public_bytes(self._key)
        return Hello(
            protocol=PROTOCOL_VERSION,
            agent_id=public_id(public),
            public_key=b64(public),
            signature=b64(self._key.sign(link_statement(nonce, base_url))),
            name=f"agent-{self._number}",
            version="0.1.0",
            targets=TARGETS,
            toolchains=(Toolchain(kind="platformio", version="6.1.18", targets=TARGETS),),
            boards=tuple(
                Board(id=f"board-{self._number}-{n}", chip="esp32p4", labels={"rack": "a"})
                for n in range(2)
            ),
            slots=self._slots,
            cpu_cores=512.0,
            memory_mb=4_000_000,
            labels={"site": f"lab{self._number % 10}", "os": "linux"},
            clock=time.time(),
            instance=self._instance,
        )

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "ping":
                await socket.send_str(Pong(time=time.time()).model_dump_json())
            case "job.offer":
                self.offered_at[frame["jti"]] = time.monotonic()
                job = {"job_id": frame["job_id"]}
                for words in (
                    SignalAnswer(**job, jti=frame["jti"], sdp=ANSWER_SDP, signature="c2lnbmF0dXJl"),
                    JobAccepted(**job, jti=frame["jti"], ends_at=time.time() + 60),
                    JobMoved(**job, state=JobState.SUCCEEDED),
                ):
                    await socket.send_str(words.model_dump_json())


class AgentFleet:
    """Every simulated agent of this process."""

    def __init__(self) -> None:
        self._agents: list[SimulatedAgent] = []
        self._links: list[asyncio.Task[None]] = []
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def link(self, base_url: str, up_to: int, slots: int) -> dict[str, Any]:
        """Link agents until there are `up_to`; say how long that took."""
        began = time.monotonic()
        opening = asyncio.Semaphore(OPENING_AT_ONCE)
        fresh = [SimulatedAgent(n, slots) for n in range(len(self._agents) + 1, up_to + 1)]
        self._agents += fresh
        self._links += [
            asyncio.create_task(agent.live(self._session, base_url, opening)) for agent in fresh
        ]
        while not all(agent.is_linked for agent in fresh):
            for link in self._links:
                if link.done():
                    link.result()
                    raise ConnectionError("control closed a link")
            await asyncio.sleep(0.1)
        return {"seconds": time.monotonic() - began}

    async def linked(self) -> dict[str, Any]:
        return {"agents": sum(agent.is_linked for agent in self._agents)}

    async def offers(self) -> dict[str, Any]:
        """When each offer came, by the clock that all processes share; each is told once."""
        found: dict[str, float] = {}
        for agent in self._agents:
            found |= agent.offered_at
            agent.offered_at.clear()
        return {"offers": found}

    async def close(self) -> None:
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._session.close()


async def questions() -> AsyncIterator[dict[str, Any]]:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        yield json.loads(line)


async def main() -> None:
    fleet = AgentFleet()
    try:
        async for question in questions():
            number, name = question.pop("id"), question.pop("do")
            try:
                found = await getattr(fleet, name)(**question)
            except (ConnectionError, TimeoutError, aiohttp.ClientError) as exc:
                found = {"failed": repr(exc)}
            sys.stdout.write(json.dumps({"id": number, **found}) + "\n")
            sys.stdout.flush()
    finally:
        await fleet.close()


if __name__ == "__main__":
    event_loop.run(main())
