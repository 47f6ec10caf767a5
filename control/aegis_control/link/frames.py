"""What each frame of an agent does. A frame about a job that is not this agent's does nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, assert_never

from aegis_protocol.control_link import (
    BoardsChanged,
    Facts,
    Hello,
    JobAccepted,
    JobMoved,
    JobRejected,
    Pong,
    Revoked,
    SessionClosed,
    SignalAnswer,
    SignalCandidate,
    Status,
    ToControl,
)
from aegis_protocol.events import Answer, Candidate, Rejected, SignalEvent
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.states import IllegalMove, JobState, ended

from aegis_control.bus import tell
from aegis_control.fleet_news import different, tell_agents, tell_boards
from aegis_control.jobs import Change, Jobs
from aegis_control.link import claims
from aegis_control.link.greeting import quarantine
from aegis_control.link.link import Link
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.store import agent_links, jobs, offers, revocations, sessions
from aegis_control.store.jobs import LIVE, JobRecord

log = get_logger("link")

_AGENTS_MOVES: Final = frozenset(
    {JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}
)
"""The states that an agent may say a job has."""


class Frames:
    def __init__(self, jobs: Jobs, links: Links) -> None:
        self._jobs = jobs
        self._links = links

    async def take(self, link: Link, frame: ToControl) -> None:
        """
        Do what `frame` says. BadRequest for one that has no place here.

        A frame of a superseded link is dropped.
        """
        if not self._links.is_current(link):
            log.info("link.frame_refused", agent_id=link.agent_id, frame=frame.type, why="old link")
            return
        match frame:
            case Pong():
                pass
            case Hello():
                raise BadRequest("a second hello on one link")
            case SignalAnswer():
                answer = Answer(
                    job_id=frame.job_id, jti=frame.jti, sdp=frame.sdp, signature=frame.signature
                )
                await self._relay(link, frame, answer)
            case SignalCandidate():
                await self._candidate(link, frame)
            case JobRejected():
                rejected = Rejected(job_id=frame.job_id, jti=frame.jti, error=frame.error)
                await self._relay(link, frame, rejected)
                log.info(
                    "offer.refused",
                    agent_id=link.agent_id,
                    job_id=frame.job_id,
                    jti=frame.jti,
                    code=frame.error.code,
                )
            case JobAccepted():
                await self._accepted(link, frame)
            case SessionClosed():
                await self._closed(link, frame)
            case JobMoved():
                await self._moved(link, frame)
            case BoardsChanged():
                changed = different(link.boards, frame.boards)
                link.boards = frame.boards
                await self._publish(link, boards=changed)
            case Facts():
                await self._claimed(link, frame)
            case Revoked():
                async with self._jobs.change() as change:
                    await revocations.done(change.conn, link.agent_id, frame.through)
                log.info("agent.revoked_through", agent_id=link.agent_id, through=frame.through)
            case Status():
                link.paused, link.draining = frame.paused, frame.draining
                if frame.quarantined is not None:
                    async with self._jobs.change() as change:
                        await quarantine(
                            change.conn, link.agent_id, frame.quarantined, resets=frame.resets
                        )
                await self._publish(link)
            case _:
                assert_never(frame)

    async def _publish(self, link: Link, *, boards: Collection[str] | None = None) -> None:
        """Let this replica and the others know what the agent said of itself (or of `boards`)."""
        self._links.changed()
        async with self._jobs.change() as change:
            await agent_links.tell_facts(change.conn, link.agent_id, link.epoch, link.facts())
            await tell(change.conn, "link", link.agent_id)
            if boards is None:
                await tell_agents(change.conn, [link.agent_id], now_s=change.now_s)
            else:
                await tell_boards(change.conn, link.agent_id, boards, now_s=change.now_s)

    async def _relay(
        self, link: Link, frame: SignalAnswer | SignalCandidate | JobRejected, event: SignalEvent
    ) -> None:
        async with self._jobs.change() as change:
            if await self._is_own(change, link, frame.job_id, frame.type, jti=frame.jti):
                await change.tell(frame.job_id, event)

    async def _candidate(self, link: Link, frame: SignalCandidate) -> None:
        async with self._jobs.change() as change:
            if not await self._is_own(change, link, frame.job_id, frame.type, jti=frame.jti):
                return
            if not await offers.add_candidate(change.conn, frame.jti, frame.job_id, "agent"):
                _refused(link, frame.job_id, frame.type, "too many candidates")
                return
            event = Candidate.model_validate(frame.model_dump(exclude={"type"}))
            await change.tell(frame.job_id, event)

    async def _accepted(self, link: Link, frame: JobAccepted) -> None:
        async with self._jobs.change() as change:
            job = await self._is_own(change, link, frame.job_id, frame.type, jti=frame.jti)
            if job is None:
                return
            await sessions.opened(change.conn, frame.jti, now_s=change.now_s)
            if job.state is JobState.RUNNING:
                await jobs.set_end(change.conn, job.id, frame.ends_at)
            else:
                await change.move(job.id, JobState.RUNNING, ends_at=frame.ends_at)

    async def _moved(self, link: Link, frame: JobMoved) -> None:
        if frame.project_key is not None and frame.project_key not in link.warm:
            link.warm |= {frame.project_key}
            await self._publish(link, boards=())
        if frame.state not in _AGENTS_MOVES:
            _refused(link, frame.job_id, frame.type, f"an agent can't move a job to {frame.state}")
            return
        try:
            async with self._jobs.change() as change:
                job = await self._is_own(change, link, frame.job_id, frame.type)
                if job is None:
                    return
                if frame.ends_at is not None:
                    await jobs.set_end(change.conn, job.id, frame.ends_at)
                if job.state is not frame.state:
                    await change.move(job.id, frame.state, error=frame.error)
        except IllegalMove:
            _refused(link, frame.job_id, frame.type, f"it can't become {frame.state}")

    async def _closed(self, link: Link, frame: SessionClosed) -> None:
        code = None if frame.error is None else frame.error.code
        async with self._jobs.change() as change:
            known = await sessions.closed(
                change.conn, frame.jti, link.agent_id, code, now_s=change.now_s
            )
        if known:
            log.info(
                "session.closed",
                agent_id=link.agent_id,
                job_id=frame.job_id,
                jti=frame.jti,
                code=code,
            )

    async def _claimed(self, link: Link, frame: Facts) -> None:
        async with self._jobs.change() as change:
            why_not = await claims.keep(change, link.agent_id, frame)
        if why_not is not None:
            _refused(link, frame.job_id, frame.type, why_not)

    async def _is_own(
        self, change: Change, link: Link, job_id: str, frame: str, *, jti: str | None = None
    ) -> JobRecord | None:
        """The job, if it is this agent's and lives, and `jti` was offered to this agent for it."""
        if not await agent_links.is_current(change.conn, link.agent_id, link.epoch):
            self._links.close_older(link.agent_id, link.epoch + 1)
            _refused(link, job_id, frame, "old link")
            return None
        job = await jobs.get(change.conn, job_id)
        if job is None or job.agent_id != link.agent_id:
            _refused(link, job_id, frame, "not this agent's job")
            return None
        if job.state not in LIVE:
            if not ended(job.state):
                _refused(link, job_id, frame, f"the job is {job.state}")
            return None
        if jti is not None and not await offers.exists(change.conn, jti, job_id, link.agent_id):
            _refused(link, job_id, frame, "never offered")
            return None
        return job


def _refused(link: Link, job_id: str, frame: str, why: str) -> None:
    log.warning("link.frame_refused", agent_id=link.agent_id, job_id=job_id, frame=frame, why=why)
