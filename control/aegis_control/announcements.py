"""What is told on `GET /events` of agents, boards, jobs and leases, and whom it concerns."""

from __future__ import annotations

from aegis_protocol.board import Board
from aegis_protocol.errors import ErrorBody
from aegis_protocol.events import Assigned, State
from aegis_protocol.fleet_events import (
    GLOBAL_PROJECT,
    AgentOffline,
    AgentOnline,
    BoardChanged,
    JobStateChanged,
    LeaseStateChanged,
    Task,
    TaskAssigned,
    TaskAvailable,
)
from aegis_protocol.http_api.agents import Agent
from aegis_protocol.http_api.toolchains import Toolchain

from aegis_control.http.job_body import job_body
from aegis_control.store.announcing import Announcement
from aegis_control.store.jobs import JobRecord
from aegis_control.store.leases import LeaseRecord


def agent_online(event: AgentOnline, toolchains: tuple[Toolchain, ...] = ()) -> Announcement:
    """toolchains: their targets count as the agent's."""
    targets = {*event.targets, *(t for chain in toolchains for t in chain.targets)}
    return Announcement(event, targets=frozenset(targets))


def agent_is_online(agent: Agent) -> Announcement:
    """The same of an agent as `GET /agents` shows it."""
    event = AgentOnline(
        agent_id=agent.id,
        agent_name=agent.name,
        state=agent.state,
        reason=agent.reason,
        targets=agent.targets,
        labels=agent.labels,
        slots=agent.slots,
    )
    return agent_online(event, agent.toolchains)


def agent_offline(agent_id: str, agent_name: str) -> Announcement:
    return Announcement(AgentOffline(agent_id=agent_id, agent_name=agent_name))


def board_changed(agent_id: str, board: Board, leased_until: float | None) -> Announcement:
    targets = frozenset() if board.chip is None else frozenset({board.chip})
    event = BoardChanged(agent_id=agent_id, board=board, leased_until=leased_until)
    return Announcement(event, targets=targets, board_id=board.id)


def job_state(job: JobRecord, told: State | None = None) -> Announcement:
    """told: what its own stream says, where that is of a moment before."""
    event = JobStateChanged(
        job_id=job.id,
        identity=job.identity,
        state=job.state if told is None else told.state,
        attempt=job.attempt,
        agent_id=job.agent_id,
        reasons=job.reasons if told is None else told.reasons,
        error=None if job.error is None else ErrorBody.model_validate(job.error),
    )
    return _of(job, event)


def available(job: JobRecord) -> tuple[Announcement, Announcement]:
    """A job that waits: in short, and whole."""
    short = TaskAvailable(job_id=job.id, target=job.request.target, project_key=_project(job))
    return _of(job, short), _of(job, Task(job=job_body(job, {})))


def assigned(job: JobRecord, told: Assigned) -> Announcement:
    event = TaskAssigned(job_id=job.id, agent_id=told.agent_id, agent_name=told.agent_name)
    return _of(job, event)


def lease_state(lease: LeaseRecord) -> Announcement:
    event = LeaseStateChanged(
        lease_id=lease.id,
        identity=lease.identity,
        state=lease.state,
        agent_id=lease.agent_id,
        board_id=lease.board_id,
        fence=lease.fence,
        expires_at=lease.expires_at,
        end=lease.end,
    )
    return Announcement(event, identity=lease.identity, board_id=lease.board_id)


def _of(
    job: JobRecord, event: JobStateChanged | TaskAvailable | Task | TaskAssigned
) -> Announcement:
    target = job.request.target
    return Announcement(
        event,
        identity=job.identity,
        targets=frozenset() if target is None else frozenset({target}),
        project_key=_project(job),
    )


def _project(job: JobRecord) -> str:
    return job.request.project_key or GLOBAL_PROJECT
