"""
A simulated agent that works: it keeps its link up, takes offers, runs jobs for a while, ends them.

It holds to the protocol as the real one does: an older attempt is refused, and what it has and how
its jobs ended is in every `hello`. `runs` is its own log of what it ran, from when to when.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import jwt
from aegis_protocol.control_link import (
    HeldJob,
    JobCancel,
    JobMoved,
    JobOffer,
    JobRejected,
    Refused,
    ToControl,
    Welcome,
)
from aegis_protocol.failures.grant import GrantStale
from aegis_protocol.states import JobState
from control_fixtures import FakeAgent

_AGAIN_S = 0.3
_SILENCE_S = 30.0


@dataclass
class Run:
    """One attempt at a job. ended: None while it runs."""

    job_id: str
    attempt: int
    began: float
    state: JobState = JobState.RUNNING
    ended: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class WorkingAgent(FakeAgent):
    """work_s: how long each job runs, unless `finish` ends it."""

    @asynccontextmanager
    async def living(self, *, work_s: float) -> AsyncIterator[None]:
        """Live while the block lasts; what went wrong in its work comes out at the end."""
        self.within_s = _SILENCE_S
        self.work_s = work_s
        self.links = 0
        self.runs: list[Run] = []
        async with asyncio.TaskGroup() as group:
            self._group = group
            living = group.create_task(self._live(), name=self.name)
            yield
            living.cancel()
            self.finish()

    def finish(self) -> None:
        """Let what runs be done now."""
        for run in self.runs:
            run.over.set()

    async def _live(self) -> None:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                await self._one_link()
            await asyncio.sleep(_AGAIN_S)

    async def _one_link(self) -> None:
        self.socket = await self._session.ws_connect(f"{self.base_url}/agents/link", compress=0)
        challenge = await self.receive()
        if challenge is None or challenge.type != "challenge":
            return
        held = tuple(
            HeldJob(job_id=run.job_id, state=run.state, attempt=run.attempt) for run in self.runs
        )
        await self.send(self.hello(challenge, jobs=held))
        while (frame := await self.receive()) is not None:
            match frame:
                case Refused():
                    return
                case Welcome():
                    self.links += 1
                    for job_id in frame.over_jobs:
                        self._end(job_id, JobState.CANCELED)
                case JobOffer():
                    await self._take(frame)
                case JobCancel():
                    self._end(frame.job_id, JobState.CANCELED)
                case _:
                    continue

    async def _take(self, offer: JobOffer) -> None:
        claims = jwt.decode(offer.grant, options={"verify_signature": False})
        attempt = int(claims["attempt"])
        mine = [run for run in self.runs if run.job_id == offer.job_id]
        if any(run.attempt > attempt or (run.attempt == attempt and run.ended) for run in mine):
            stale = GrantStale("the job was placed again since").body()
            await self.send(JobRejected(job_id=offer.job_id, jti=offer.jti, error=stale))
            return
        if not any(run.attempt == attempt for run in mine):
            self._end(offer.job_id, JobState.CANCELED)
            run = Run(offer.job_id, attempt, time.monotonic())
            self.runs.append(run)
            self._group.create_task(self._work(run), name=f"{self.name}-{offer.job_id}")
        await self.answer(offer)
        await self.accept(offer)

    async def _work(self, run: Run) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.work_s):
                await run.over.wait()
        if run.ended is None:
            run.ended, run.state = time.monotonic(), JobState.SUCCEEDED
        await self._say(JobMoved(job_id=run.job_id, state=run.state))

    def _end(self, job_id: str, state: JobState) -> None:
        for run in self.runs:
            if run.job_id == job_id and run.ended is None:
                run.ended, run.state = time.monotonic(), state
                run.over.set()

    async def _say(self, frame: ToControl) -> None:
        """Say it, if there is a link; the next `hello` says it too."""
        if self.socket is not None and not self.socket.closed:
            with suppress(aiohttp.ClientError, ConnectionError):
                await self.send(frame)
