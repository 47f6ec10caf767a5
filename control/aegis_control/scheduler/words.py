"""What the scheduler is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aegis_protocol.board import Board, BoardWish
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.http_api.toolchains import Toolchain, ToolchainWish
from aegis_protocol.states import AgentState


@dataclass(frozen=True)
class WaitingJob:
    """
    agent         an id or a name
    among         what key and policy leave: of each, the agent is one by id, name or `key=value`
    board_limits  ids of the boards that the key may use; None: any
    most_jobs     how many jobs its identity may have on agents at once; None: any number
    """

    id: str
    identity: str
    created_at: float
    target: str | None = None
    toolchain: ToolchainWish | None = None
    agent: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    boards: tuple[BoardWish, ...] = ()
    cpu_cores: float = 1.0
    memory_mb: int = 1024
    project_key: str | None = None
    priority: int = 0
    among: tuple[tuple[str, ...], ...] = ()
    board_limits: tuple[str, ...] | None = None
    most_jobs: int | None = None


@dataclass(frozen=True)
class Leased:
    """Who holds a board by a lease, and until when (unix seconds)."""

    identity: str
    until_s: float


@dataclass(frozen=True)
class AgentView:
    """
    What the scheduler sees of an agent.

    slots_free, cpu_free, memory_free_mb  what is left beside the jobs that it has
    held                                  its boards that jobs have
    holders                               the identity of the job that has a board, where known
    leased                                its boards that identities have by a lease
    """

    id: str
    name: str
    state: AgentState
    reason: str = ""
    targets: frozenset[str] = frozenset()
    toolchains: tuple[Toolchain, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    boards: tuple[Board, ...] = ()
    held: frozenset[str] = frozenset()
    holders: Mapping[str, str] = field(default_factory=dict)
    leased: Mapping[str, Leased] = field(default_factory=dict)
    slots: int = 1
    slots_free: int = 1
    cpu_cores: float = 1.0
    cpu_free: float = 1.0
    memory_mb: int = 1024
    memory_free_mb: int = 1024
    warm: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """candidates: other agents that could have taken the job, a few of them."""

    job_id: str
    agent_id: str
    boards: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    matches: tuple[Match, ...]
    waiting: Mapping[str, tuple[Reason, ...]]
