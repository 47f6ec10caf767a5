"""
What control tells pages and integrations on `GET /events`, of everything that the key may see.

Server-sent events as in `events`: besides `connected`, `keepalive` and `reset`, which both streams
have, these types. Clients ignore types that they don't know.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from aegis_protocol.board import Board
from aegis_protocol.errors import ErrorBody
from aegis_protocol.events import Connected, KeepAlive, Reset
from aegis_protocol.http_api.jobs import Job, Reason
from aegis_protocol.model import Id, Labels, TargetName, UnixSeconds, Wire
from aegis_protocol.states import AgentState, JobState, LeaseState

GLOBAL_PROJECT: Final = "global"
"""The project of a job that names none."""


class AgentOnline(Wire):
    """An agent has a link, or its state changed. reason: why it takes no jobs, if it does not."""

    type: Literal["agent_online"] = "agent_online"
    agent_id: Id
    agent_name: str
    state: AgentState
    reason: str = ""
    targets: tuple[TargetName, ...] = ()
    labels: Labels = Field(default_factory=dict)
    slots: int = 1


class AgentOffline(Wire):
    """An agent has no link any more; its sessions go on."""

    type: Literal["agent_offline"] = "agent_offline"
    agent_id: Id
    agent_name: str


class BoardChanged(Wire):
    """A board came, went (`gone`), was taken, leased or given back, or is known better."""

    type: Literal["board_changed"] = "board_changed"
    agent_id: Id
    board: Board
    leased_until: UnixSeconds | None = None
    """While somebody has it by a lease; `GET /boards` says who."""


class TaskAvailable(Wire):
    """A job waits for an agent. `task` has all of it."""

    type: Literal["task_available"] = "task_available"
    job_id: Id
    target: TargetName | None = None
    project_key: Id = GLOBAL_PROJECT


class Task(Wire):
    """The whole job that waits, for whoever wants no second request."""

    type: Literal["task"] = "task"
    job: Job


class TaskAssigned(Wire):
    type: Literal["task_assigned"] = "task_assigned"
    job_id: Id
    agent_id: Id
    agent_name: str


class JobStateChanged(Wire):
    """A job's state, or the reasons why it waits."""

    type: Literal["job_state"] = "job_state"
    job_id: Id
    identity: Id
    state: JobState
    attempt: int
    agent_id: Id | None = None
    reasons: tuple[Reason, ...] = ()
    error: ErrorBody | None = None


class LeaseStateChanged(Wire):
    """
    A lease of a board: queued, held, held for longer, or ended. For its holder and for operators.

    expires_at  queued: when it gives up waiting; held: when it ends
    end         how it ended: released, expired, idle, kicked
    """

    type: Literal["lease_state"] = "lease_state"
    lease_id: Id
    identity: Id
    state: LeaseState
    agent_id: Id | None = None
    board_id: Id | None = None
    fence: int | None = None
    expires_at: UnixSeconds
    end: str | None = None


FleetEvent: TypeAlias = Annotated[
    Connected
    | KeepAlive
    | Reset
    | AgentOnline
    | AgentOffline
    | BoardChanged
    | TaskAvailable
    | Task
    | TaskAssigned
    | JobStateChanged
    | LeaseStateChanged,
    Field(discriminator="type"),
]
FLEET_EVENT: Final[TypeAdapter[FleetEvent]] = TypeAdapter(FleetEvent)

FLEET_TYPES: Final = (
    "agent_online",
    "agent_offline",
    "board_changed",
    "task_available",
    "task",
    "task_assigned",
    "job_state",
    "lease_state",
)
"""The types that `?types=` may name."""
