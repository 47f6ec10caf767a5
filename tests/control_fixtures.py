"""
A real control on a real socket, and the two who talk to it: an agent with a key, and a client.

The agent speaks the link's protocol and nothing else: what it answers, the test says.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aegis_control.config import ControlConfig
from aegis_control.link.link import Link
from aegis_control.serve import Served, serving
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.actions import Role
from aegis_protocol.board import Board
from aegis_protocol.control_link import (
    TO_AGENT,
    Challenge,
    HeldJob,
    Hello,
    JobAccepted,
    JobOffer,
    Pong,
    Refused,
    SignalAnswer,
    ToAgent,
    ToControl,
    Welcome,
)
from aegis_protocol.errors import ErrorBody
from aegis_protocol.events import SIGNAL_EVENT, SignalEvent
from aegis_protocol.http_api.enrollment import EnrollReply, EnrollRequest
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.ids import new_id, public_id
from aegis_protocol.signing import b64, enroll_statement, link_statement, public_bytes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from databases import store_of

MCP = "the secret that everyone here knows"
AGENTS = "the secret with which machines may join"
FINGERPRINT = "sha-256:" + ":".join(f"{n:02X}" for n in range(32))
WITHIN_S = 5.0

Frame = TypeVar("Frame", bound=ToAgent)
Event = TypeVar("Event", bound=SignalEvent)


def config(state: Path, **settings: Any) -> ControlConfig:
    """Settings of a control that listens on a free port and keeps everything in `state`."""
    given: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "state_dir": state,
        "mcp_auth_secret": MCP,
        "agent_auth_secret": AGENTS,
        "drain_timeout_s": 300,
    }
    if (database := store_of(state)) is not None:
        given["database_url"] = database
    return ControlConfig(**(given | settings))


@asynccontextmanager
async def control(state: Path, **settings: Any) -> AsyncIterator[Served]:
    async with serving(config(state, **settings)) as served:
        yield served


def link_of(served: Served, agent_id: str) -> Link:
    """The agent's link as this control has it; without one the test fails."""
    link = served.control.links.find_own(agent_id)
    assert link is not None
    return link


async def key_of(served: Served, role: Role, **limits: tuple[str, ...]) -> str:
    """A new API key of that role."""
    return (await served.control.keyring.make_key(role, limits=limits)).key


def sdp(*fingerprints: str) -> str:
    """A data channel's offer with these fingerprints (by default the one that grants name)."""
    values = fingerprints or (FINGERPRINT,)
    lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0"]
    lines += ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0"]
    lines += [f"a=fingerprint:sha-256 {value.removeprefix('sha-256:')}" for value in values]
    lines += ["a=setup:actpass", "a=sctp-port:5000", ""]
    return "\r\n".join(lines)


@dataclass
class Answered:
    """An HTTP answer."""

    status: int
    body: Any
    headers: Any

    @property
    def error(self) -> ErrorBody:
        return ErrorBody.model_validate(self.body["error"])


class Client:
    """Speaks the HTTP API with one key."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, key: str | None) -> None:
        self.session = session
        self.base_url = base_url
        self.key = key

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answered:
        given = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        async with self.session.request(
            method, self.base_url + path, json=body, data=data, headers=given | (headers or {})
        ) as answer:
            text = await answer.text()
            parsed = json.loads(text) if "json" in answer.content_type else text
            return Answered(answer.status, parsed, answer.headers)

    async def request(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Answered:
        """POST /grant/request."""
        body = {"peer_fingerprint": FINGERPRINT, "required_channels": ["espctl"]} | fields
        return await self.ask("POST", "/grant/request", body, headers=headers)

    async def granted(self, **fields: Any) -> GrantReply:
        """A grant; anything else fails the test."""
        answer = await self.request(**fields)
        assert answer.status == 200, answer.body
        return GrantReply.model_validate(answer.body)

    async def offer(self, grant: GrantReply, text: str | None = None) -> Answered:
        return await self.ask(
            "POST",
            f"/signaling/{grant.job_id}/offer",
            {"sdp": text or sdp(), "type": "offer"},
            headers={"Authorization": f"Bearer {grant.grant}"},
        )

    async def job(self, job_id: str) -> Any:
        return (await self.ask("GET", f"/jobs/{job_id}")).body

    async def until_state(self, job_id: str, state: str, *, within_s: float = WITHIN_S) -> Any:
        """Wait until the job is in `state`."""
        async with asyncio.timeout(within_s):
            while (job := await self.job(job_id))["state"] != state:
                await asyncio.sleep(0.02)
        return job

    @asynccontextmanager
    async def events(self, job_id: str, *, after: int | None = None) -> AsyncIterator[Events]:
        headers = {"Authorization": f"Bearer {self.key}"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        url = f"{self.base_url}/signaling/{job_id}/events"
        async with self.session.get(url, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            yield Events(answer)


@dataclass
class Events:
    """An event stream being read. `ids`: of the events so far, None for those without."""

    answer: aiohttp.ClientResponse
    ids: list[int | None] = field(default_factory=list)

    async def next(self) -> SignalEvent | None:
        """The next event; None when control ended the stream."""
        event_id: int | None = None
        data = None
        async with asyncio.timeout(WITHIN_S):
            while line := await self.answer.content.readline():
                text = line.decode().rstrip("\n")
                if text.startswith("id: "):
                    event_id = int(text[4:])
                elif text.startswith("data: "):
                    data = text[6:]
                elif text == "" and data is not None:
                    self.ids.append(event_id)
                    return SIGNAL_EVENT.validate_json(data)
        return None

    async def until(
        self, kind: type[Event], fits: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """The next event of that kind that fits; others are passed over."""
        while (event := await self.next()) is not None:
            if isinstance(event, kind) and fits(event):
                return event
        raise AssertionError(f"the stream ended without {kind.__name__}")

    async def rest(self) -> list[SignalEvent]:
        """All that comes until control ends the stream."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


class FakeAgent:
    """
    An agent with a real key. `hello`: fields that differ from the ordinary.

    at  where it connects: a replica, or a balancer; by default control's own URL
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        *,
        at: str | None = None,
        name: str = "bench",
        **hello: Any,
    ) -> None:
        self._session = session
        self.base_url = base_url
        self.at = at
        self.key = Ed25519PrivateKey.generate()
        self.id = public_id(public_bytes(self.key))
        self.instance = new_id()
        self.name = name
        self.facts: dict[str, Any] = {
            "version": "0.1.0",
            "targets": ("esp32", "esp32p4"),
            "toolchains": (
                Toolchain(kind="platformio", version="6.1.18", targets=("esp32", "esp32p4")),
            ),
            "slots": 2,
            "cpu_cores": 4.0,
            "memory_mb": 8192,
        } | hello
        self.within_s = WITHIN_S
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self.welcome: Welcome | None = None

    def enroll_request(self, token: str = AGENTS) -> EnrollRequest:
        digest = sha256(token.encode()).hexdigest()
        return EnrollRequest(
            token=token,
            name=self.name,
            public_key=b64(public_bytes(self.key)),
            signature=b64(self.key.sign(enroll_statement(digest, self.base_url))),
            base_url=self.base_url,
        )

    async def enroll(self, token: str = AGENTS) -> EnrollReply:
        client = Client(self._session, self.at or self.base_url, None)
        request = self.enroll_request(token).model_dump(mode="json")
        answer = await client.ask("POST", "/agents/enroll", request)
        assert answer.status == 200, answer.body
        return EnrollReply.model_validate(answer.body)

    async def open(self) -> Challenge:
        """Open the socket; control speaks first."""
        self.socket = await self._session.ws_connect(
            f"{self.at or self.base_url}/agents/link", compress=0
        )
        return await self.next(Challenge)

    def hello(self, challenge: Challenge, **fields: Any) -> Hello:
        message = link_statement(challenge.nonce, challenge.base_url)
        return Hello.model_validate(
            {
                "protocol": PROTOCOL_VERSION,
                "agent_id": self.id,
                "public_key": b64(public_bytes(self.key)),
                "signature": b64(self.key.sign(message)),
                "name": self.name,
                "clock": time.time(),
                "instance": self.instance,
            }
            | self.facts
            | fields
        )

    async def link(self, *jobs: HeldJob, **fields: Any) -> Welcome:
        """Open a link and say hello, with the jobs that the agent still has."""
        challenge = await self.open()
        await self.send(self.hello(challenge, jobs=jobs, **fields))
        self.welcome = await self.next(Welcome)
        return self.welcome

    async def send_hello(self, **fields: Any) -> None:
        """Open a link and say a hello that differs from the right one in `fields`."""
        await self.send(self.hello(await self.open(), **fields))

    async def send(self, frame: ToControl) -> None:
        assert self.socket is not None
        await self.socket.send_str(frame.model_dump_json())

    async def receive(self) -> ToAgent | None:
        """The next frame; None when the socket is closed. Pings are answered, not shown."""
        assert self.socket is not None
        while True:
            async with asyncio.timeout(self.within_s):
                message = await self.socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                return None
            frame = TO_AGENT.validate_json(message.data)
            if frame.type != "ping":
                return frame
            await self.send(Pong(time=time.time()))

    async def next(self, kind: type[Frame]) -> Frame:
        frame = await self.receive()
        assert isinstance(frame, kind), frame
        return frame

    async def refusal(self) -> str:
        """The code with which control refuses; the socket is closed after it."""
        refused = await self.next(Refused)
        assert await self.receive() is None
        return refused.error.code

    async def answer(self, offer: JobOffer) -> None:
        """Answer an offer, and take the job."""
        await self.send(
            SignalAnswer(job_id=offer.job_id, jti=offer.jti, sdp="v=0 answer", signature="c2ln")
        )

    async def accept(self, offer: JobOffer, *, for_s: float = 600) -> None:
        await self.send(
            JobAccepted(job_id=offer.job_id, jti=offer.jti, ends_at=time.time() + for_s)
        )

    async def leave(self) -> None:
        assert self.socket is not None
        await self.socket.close()


@dataclass
class Bench:
    """Everything that a test about control needs."""

    served: Served
    session: aiohttp.ClientSession
    machines: list[FakeAgent] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return self.served.base_url

    @property
    def at(self) -> str:
        """Where it listens, when its public URL is another."""
        return self._replica or self.base_url

    @property
    def _replica(self) -> str | None:
        if self.served.control.config.public_base_url is None:
            return None
        return f"http://127.0.0.1:{self.served.port}"

    def client(self, key: str | None = MCP) -> Client:
        return Client(self.session, self.at, key)

    async def client_of(self, role: Role, **limits: tuple[str, ...]) -> Client:
        return self.client(await key_of(self.served, role, **limits))

    def machine(self, name: str = "bench", **hello: Any) -> FakeAgent:
        """An agent that is not enrolled yet."""
        agent = FakeAgent(self.session, self.base_url, at=self._replica, name=name, **hello)
        self.machines.append(agent)  # a link lives as long as somebody holds it
        return agent

    def copy(self, of: FakeAgent) -> FakeAgent:
        """A second process that has the key and the name of `of`."""
        twin = self.machine(of.name)
        twin.key, twin.id = of.key, of.id
        return twin

    async def agent(self, name: str = "bench", **hello: Any) -> FakeAgent:
        """An agent, enrolled and linked."""
        agent = self.machine(name, **hello)
        await agent.enroll()
        await agent.link()
        return agent

    async def running(self, client: Client, agent: FakeAgent, **fields: Any) -> GrantReply:
        """A job that runs on `agent`."""
        grant = await client.granted(**fields)
        answer = await client.offer(grant)
        assert answer.status == 202, answer.body
        await agent.accept(await agent.next(JobOffer))
        await client.until_state(grant.job_id, "running")
        return grant


@asynccontextmanager
async def bench(state: Path, **settings: Any) -> AsyncIterator[Bench]:
    async with control(state, **settings) as served, aiohttp.ClientSession() as session:
        yield Bench(served, session)


def board(board_id: str, chip: str | None = "esp32p4", **labels: str) -> Board:
    return Board(id=board_id, chip=chip, labels=labels)
