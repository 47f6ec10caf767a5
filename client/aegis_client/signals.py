"""
What control says about one job while it lives: its event stream, kept open and read.

The stream may break and come back (`Last-Event-ID`); once the peers talk to each other, nobody
needs it any more, so that a control that dies disturbs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

import structlog
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.events import (
    SIGNAL_EVENT,
    Answer,
    Assigned,
    Candidate,
    Closed,
    Connected,
    Rejected,
    State,
)
from aegis_protocol.failures.http import JobCanceled, JobOver
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.states import JobState, ended
from pydantic import ValidationError

from aegis_client.changes import Changes
from aegis_client.control import ControlClient
from aegis_client.sse import ServerEvent, SseParser

MAX_CANDIDATES: Final = 32
_BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_log = structlog.get_logger("aegis_client.signals")


class Signals:
    """The newest of each thing that control said. Wait for what you need with `until`."""

    def __init__(self, control: ControlClient, job_id: str) -> None:
        self._control, self._job_id = control, job_id
        self._changes = Changes()
        self._last_id = ""
        self._readings: set[asyncio.Task[None]] = set()
        self.until = self._changes.until
        self.connected = False
        self.error: AegisError | None = None
        """Why the stream is over for good."""
        self.state: JobState | None = None
        self.assigned = False
        self.reasons: tuple[Reason, ...] = ()
        self.closed: AegisError | None = None
        """The agent's link to control is down since `closed_at`, or the job ended."""
        self.closed_at = 0.0
        self.answers: dict[str, Answer | AegisError] = {}
        """By `jti`: the agent's answer, or why it refused."""
        self.candidates: dict[str, list[Candidate]] = {}

    @classmethod
    @asynccontextmanager
    async def listening(cls, control: ControlClient, job_id: str) -> AsyncIterator[Signals]:
        signals = cls(control, job_id)
        signals.reopen()
        try:
            yield signals
        finally:
            readings = list(signals._readings)
            for reading in readings:
                reading.cancel()
            await asyncio.gather(*readings, return_exceptions=True)

    def reopen(self) -> None:
        """
        Open the stream anew, from where it is: after a change of network the old one may be dead
        without anybody having said so.
        """
        for reading in self._readings:
            reading.cancel()
        if self.error is not None:
            return  # refused for good
        self.connected = False
        reading = asyncio.create_task(self._read(), name=f"signals-{self._job_id}")
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)

    async def wait_connected(self) -> None:
        """Return once the stream is open. Raises what made it end for good."""
        await self.until(lambda: True if self.connected or self.error else None)
        if self.error is not None:
            raise self.error

    async def answer(self, jti: str) -> Answer:
        """Return the agent's answer to the offer `jti`, or raise why there will be none."""

        def look() -> Answer | AegisError | None:
            return self.answers.get(jti) or self.over() or self.closed

        found: Answer | AegisError = await self.until(look)
        if isinstance(found, AegisError):
            raise found
        return found

    def over(self) -> AegisError | None:
        """Why nothing more is to be expected for this job, if so."""
        if self.state is not None and ended(self.state):
            if self.closed is not None:
                return self.closed
            if self.state is JobState.CANCELED:
                return JobCanceled("the job was canceled", job_id=self._job_id)
            return JobOver(f"the job is over: {self.state}", job_id=self._job_id)
        return self.error

    async def _read(self) -> None:
        """Read, and open the stream again when it breaks, until canceled or refused."""
        failures = 0
        while True:
            try:
                path = f"/signaling/{quote(self._job_id, safe='')}/events"
                async with self._control.event_bytes(path, self._last_id) as pieces:
                    parser = SseParser(self._last_id)
                    async for piece in pieces:
                        for event in parser.feed(piece):
                            self._last_id = event.id
                            self._take(event)
                            failures = 0
            except AegisError as exc:
                if not exc.retryable:
                    _log.warning("signals.refused", job_id=self._job_id, code=exc.code)
                    self.error = exc
                    self._changes.wake()
                    return
                _log.info("signals.interrupted", job_id=self._job_id, code=exc.code)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1

    def _take(self, raw: ServerEvent) -> None:
        try:
            event = SIGNAL_EVENT.validate_json(raw.data)
        except ValidationError:
            # Types that this version does not know are none of our business.
            _log.info("signals.event_ignored", job_id=self._job_id, type=raw.type[:40])
            return
        match event:
            case Connected():
                self.connected = True
            case State():
                self.state, self.reasons = event.state, event.reasons
                self.assigned = event.state in (JobState.ASSIGNED, JobState.RUNNING)
                if self.assigned:
                    self.closed = None  # the agent is back; if it is not, control says so next
            case Assigned():
                self.assigned = True
            case Answer():
                self.answers[event.jti] = event
            case Candidate():
                of_peer = self.candidates.setdefault(event.jti, [])
                if len(of_peer) < MAX_CANDIDATES:
                    of_peer.append(event)
            case Rejected():
                self.answers[event.jti] = from_body(event.error)
            case Closed():
                self.closed = from_body(event.error) if event.error else None
                self.closed_at = asyncio.get_running_loop().time()
            case _:
                return
        self._changes.wake()
