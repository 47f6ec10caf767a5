"""
The states of jobs, tasks, agents and boards, and the moves between them.

The tables below are the only place that says which move exists: the store's statements, the
agent's tasks and the diagram in docs/protocol.md all come from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar

from aegis_protocol.errors import AegisError


class JobState(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    LOST = "lost"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


class TaskState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class AgentState(StrEnum):
    ONLINE = "online"
    DISCONNECTED = "disconnected"
    PAUSED = "paused"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"


class Order(StrEnum):
    """What stands ordered of an agent until somebody takes it back."""

    NONE = "none"
    PAUSED = "paused"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class LeaseState(StrEnum):
    QUEUED = "queued"
    HELD = "held"
    ENDED = "ended"


class BoardState(StrEnum):
    FREE = "free"
    HELD = "held"
    GONE = "gone"


class IllegalMove(AegisError):
    code = "state.illegal_move"
    remedy = "What you asked for is over already: look at its state, then ask anew."


_JOB_ENDS: Final = frozenset(
    {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}
)
_TASK_ENDS: Final = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED})

JOB_MOVES: Final[Mapping[JobState, frozenset[JobState]]] = MappingProxyType(
    {
        JobState.PENDING: frozenset(
            {JobState.ASSIGNED, JobState.CANCELED, JobState.EXPIRED, JobState.FAILED}
        ),
        JobState.ASSIGNED: frozenset(
            {JobState.PENDING, JobState.RUNNING, JobState.LOST, *(_JOB_ENDS)}
        ),
        JobState.RUNNING: frozenset({JobState.LOST, *_JOB_ENDS}),
        JobState.LOST: frozenset({JobState.RUNNING, JobState.PENDING, *_JOB_ENDS}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELED: frozenset(),
        JobState.EXPIRED: frozenset(),
    }
)

TASK_MOVES: Final[Mapping[TaskState, frozenset[TaskState]]] = MappingProxyType(
    {
        TaskState.PENDING: frozenset({TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELED}),
        TaskState.RUNNING: _TASK_ENDS,
        TaskState.SUCCEEDED: frozenset(),
        TaskState.FAILED: frozenset(),
        TaskState.CANCELED: frozenset(),
    }
)

S = TypeVar("S", JobState, TaskState)


def move(now: S, to: S) -> S:
    """Return `to`, or raise `IllegalMove` when the table has no such move."""
    moves: Mapping[S, frozenset[S]] = JOB_MOVES if isinstance(now, JobState) else TASK_MOVES
    if to not in moves[now]:
        raise IllegalMove(f"{now} can't become {to}", now=str(now), to=str(to))
    return to


def sources(to: JobState) -> tuple[JobState, ...]:
    """Return the states from which a job may become `to`, for `UPDATE … WHERE state IN`."""
    return tuple(state for state, targets in JOB_MOVES.items() if to in targets)


def ended(state: JobState | TaskState) -> bool:
    """Tell whether `state` has no move left."""
    if isinstance(state, JobState):
        return not JOB_MOVES[state]
    return not TASK_MOVES[state]


def diagram(moves: Mapping[S, frozenset[S]]) -> str:
    """Return the table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for state, targets in moves.items():
        lines += [f"    {state} --> {to}" for to in sorted(targets)]
        if not targets:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)
