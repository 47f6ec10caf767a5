"""
Control for the client's tests: a small server that speaks the protocol's models over real HTTP,
with one `FakeAgent` behind it. It can be told to let jobs wait, to fail, and to be forged.

As a program it serves until it is killed, and prints its URL and key as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aegis_protocol.actions import Action, Role
from aegis_protocol.board import Board
from aegis_protocol.errors import AegisError, ErrorReply
from aegis_protocol.failures.http import JobNotFound, KeyWrong, RoleInsufficient
from aegis_protocol.http_api.agents import Agent, AgentList
from aegis_protocol.http_api.boards import BoardList, BoardRow
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply
from aegis_protocol.http_api.health import Health
from aegis_protocol.http_api.jobs import Job, JobList, Reason
from aegis_protocol.http_api.keys import WhoAmI
from aegis_protocol.http_api.signaling import OfferReply
from aegis_protocol.ids import new_id
from aegis_protocol.model import Wire
from aegis_protocol.states import AgentState, JobState
from aiohttp import web
from fake_agent import FakeAgent, Script

KEY = "aegis_sk_test_0123456789"
BOARD = Board(id="bench-p4", chip="esp32p4", labels={"site": "lab1"})
_STATUS = {"auth.key_wrong": 401, "auth.key_missing": 401, "job.not_found": 404}


@dataclass
class FakeJob:
    request: GrantRequest
    state: JobState = JobState.ASSIGNED
    reasons: tuple[Reason, ...] = ()
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    grants: int = 0


class FakeControl:
    """Made by `running`. Change its fields to change what it does."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.url = ""
        self.jobs: dict[str, FakeJob] = {}
        self.pending: tuple[Reason, ...] = ()
        """Not empty: new jobs wait, and these are the reasons."""
        self.failures: list[tuple[int, bytes, dict[str, str]]] = []
        """What the next requests are answered with."""
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.idempotency_keys: list[str] = []
        self.canceled: list[str] = []
        self.last_event_ids: list[str | None] = []
        self.wanted: list[GrantRequest] = []
        self.role = Role.FLASHER
        self.lacking: frozenset[Action] = frozenset()
        """Actions that the role is without here."""
        self.offers = 0
        self.reject_offers: list[AegisError] = []
        self.relays = asyncio.Event()
        """While it is not set, offers do not reach the agent."""
        self.relays.set()
        self.change_grant: Callable[[GrantReply], GrantReply] = lambda grant: grant
        self.change_answer: Callable[[str, str], Awaitable[tuple[str, str]]] | None = None
        """A control that sits in the middle: gets the agent's SDP and signature, gives others."""
        self._jtis: dict[str, tuple[str, GrantRequest]] = {}
        self._news = asyncio.Condition()
        self._streams: set[asyncio.Task[Any]] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None

    @classmethod
    @asynccontextmanager
    async def running(
        cls, agent: FakeAgent | None = None, *, port: int = 0
    ) -> AsyncIterator[FakeControl]:
        control = cls(agent or FakeAgent(boards=(BOARD,)))
        await control.start(port)
        try:
            yield control
        finally:
            await control.stop()
            await control.agent.close()

    async def start(self, port: int = 0) -> None:
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/whoami", self._whoami),
                web.get("/agents", self._agents),
                web.get("/boards", self._boards),
                web.get("/jobs", self._job_list),
                web.get("/jobs/{job}", self._job),
                web.delete("/jobs/{job}", self._cancel),
                web.post("/grant/request", self._grant),
                web.post("/signaling/{job}/offer", self._offer),
                web.get("/signaling/{job}/events", self._events),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        found = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{found}"

    async def stop(self) -> None:
        self.cut_streams()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    def cut_streams(self) -> None:
        """Drop every event stream, as a restart or a proxy does."""
        for stream in list(self._streams):
            stream.cancel()

    async def tell(self, job_id: str, kind: str, **data: Any) -> None:
        """Append an event to a job's stream."""
        self.jobs[job_id].events.append((kind, {"type": kind, "job_id": job_id, **data}))
        async with self._news:
            self._news.notify_all()

    async def assign(self, job_id: str) -> None:
        """An agent has become free for a job that waits."""
        self.jobs[job_id].state = JobState.ASSIGNED
        await self.tell(job_id, "assigned", agent_id=self.agent.id, agent_name=self.agent.name)

    async def end(self, job_id: str, state: JobState, error: AegisError | None = None) -> None:
        self.jobs[job_id].state = state
        body = error.body().model_dump(mode="json") if error else None
        await self.tell(job_id, "closed", error=body)
        await self.tell(job_id, "state", state=str(state))

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.headers.append(dict(request.headers))
        if self.failures:
            status, body, headers = self.failures.pop(0)
            return web.Response(status=status, body=body, headers=headers)
        try:
            open_to_all = request.path == "/health" or request.path.endswith("/offer")
            known = request.headers.get("Authorization") == f"Bearer {KEY}"
            if not (open_to_all or known):
                raise KeyWrong("the key is not known")
            return await handler(request)
        except AegisError as exc:
            return _json(ErrorReply(error=exc.body()), _STATUS.get(exc.code, 403))

    async def _health(self, _: web.Request) -> web.Response:
        return _json(
            Health(
                status="ok",
                version="0",
                protocol=1,
                time=time.time(),
                store="ok",
                agents_online=1,
            )
        )

    async def _whoami(self, _: web.Request) -> web.Response:
        return _json(WhoAmI(identity="me", role=self.role, actions=tuple(Action)))

    async def _agents(self, _: web.Request) -> web.Response:
        agent = Agent(
            id=self.agent.id,
            name=self.agent.name,
            key=self.agent.key_text,
            state=AgentState.ONLINE,
            targets=("esp32", "esp32p4"),
            boards=self.agent.boards,
            slots_free=1,
            last_seen=time.time(),
        )
        return _json(AgentList(agents=(agent,)))

    async def _boards(self, _: web.Request) -> web.Response:
        rows = tuple(
            BoardRow(
                agent_id=self.agent.id,
                agent_name=self.agent.name,
                agent_state=AgentState.ONLINE,
                board=board,
            )
            for board in self.agent.boards
        )
        return _json(BoardList(boards=rows))

    async def _job_list(self, _: web.Request) -> web.Response:
        return _json(JobList(jobs=tuple(self._job_of(job_id) for job_id in self.jobs)))

    async def _job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        if job_id not in self.jobs:
            raise JobNotFound(f"there is no job {job_id}")
        return _json(self._job_of(job_id))

    async def _cancel(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        if job_id not in self.jobs:
            raise JobNotFound(f"there is no job {job_id}")
        self.canceled.append(job_id)
        self.jobs[job_id].state = JobState.CANCELED
        return _json(self._job_of(job_id))

    def _job_of(self, job_id: str) -> Job:
        job = self.jobs[job_id]
        return Job(
            id=job_id,
            identity="me",
            state=job.state,
            created_at=0,
            updated_at=0,
            timeout_secs=job.request.timeout_secs,
            agent_id=self.agent.id,
            agent_name=self.agent.name,
            reasons=job.reasons,
        )

    async def _grant(self, request: web.Request) -> web.Response:
        wanted = GrantRequest.model_validate_json(await request.read())
        self.wanted.append(wanted)
        excess = [a for a in wanted.actions or () if a in self.lacking]
        if excess:
            raise RoleInsufficient(
                f"the action {excess[0]} is not the role {self.role}'s",
                actions=[str(action) for action in excess],
            )
        if "Idempotency-Key" in request.headers:
            self.idempotency_keys.append(request.headers["Idempotency-Key"])
        job_id = wanted.job_id or new_id()
        if wanted.job_id is None:
            waits = bool(self.pending)
            self.jobs[job_id] = FakeJob(
                wanted, JobState.PENDING if waits else JobState.ASSIGNED, self.pending
            )
        elif job_id not in self.jobs:
            raise JobNotFound(f"there is no job {job_id}")
        job = self.jobs[job_id]
        if job.state is JobState.PENDING:
            waiting = PendingReply(job_id=job_id, state=JobState.PENDING, reasons=job.reasons)
            return _json(waiting, 202)
        job.grants += 1
        jti = new_id()
        self._jtis[f"grant-{jti}"] = (jti, wanted)
        grant = GrantReply(
            job_id=job_id,
            state=JobState.ASSIGNED,
            grant=f"grant-{jti}",
            grant_expires_at=time.time() + 30,
            agent_id=self.agent.id,
            agent_name=self.agent.name,
            agent_key=self.agent.key_text,
            allowed_channels=wanted.required_channels,
            actions=wanted.actions or (),
            boards=self.agent.boards if wanted.boards else (),
        )
        return _json(self.change_grant(grant))

    async def _offer(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        token = request.headers["Authorization"].removeprefix("Bearer ")
        jti, wanted = self._jtis[token]
        sdp = (await request.json())["sdp"]
        self.offers += 1
        if self.reject_offers:
            error = self.reject_offers.pop(0).body().model_dump(mode="json")
            await self.tell(job_id, "rejected", jti=jti, error=error)
        else:
            relay = asyncio.create_task(self._relay(job_id, jti, sdp, wanted))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)
        return _json(OfferReply(job_id=job_id, jti=jti), 202)

    async def _relay(self, job_id: str, jti: str, sdp: str, wanted: GrantRequest) -> None:
        await self.relays.wait()
        answer, signature = await self.agent.answer(
            job_id,
            jti,
            sdp,
            wanted.peer_fingerprint,
            wanted.required_channels,
            wanted.actions or (),
        )
        if self.change_answer is not None:
            answer, signature = await self.change_answer(answer, signature)
        self.jobs[job_id].state = JobState.RUNNING
        await self.tell(job_id, "answer", jti=jti, sdp=answer, signature=signature)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        job_id = request.match_info["job"]
        if job_id not in self.jobs:
            raise JobNotFound(f"there is no job {job_id}")
        last = request.headers.get("Last-Event-ID")
        self.last_event_ids.append(last)
        job = self.jobs[job_id]
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        sent = int(last) if last else len(job.events)
        await stream.write(_event(str(sent), "connected", {"job_id": job_id, "time": time.time()}))
        state = {"job_id": job_id, "state": str(job.state)}
        await stream.write(_event("", "state", state))
        try:
            while True:
                while sent < len(job.events):
                    kind, data = job.events[sent]
                    sent += 1
                    await stream.write(_event(str(sent), kind, data))
                async with self._news:
                    await self._news.wait()
        finally:
            self._streams.discard(task)


def _event(number: str, kind: str, data: dict[str, Any]) -> bytes:
    head = f"id: {number}\n" if number else ""
    return f"{head}event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _json(body: Wire | ErrorReply, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body.model_dump_json(), content_type="application/json")


async def _serve() -> None:
    async with FakeControl.running() as control:
        control.agent.script = Script(hold="--hold" in sys.argv[1:])
        sys.stdout.write(json.dumps({"url": control.url, "key": KEY}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
