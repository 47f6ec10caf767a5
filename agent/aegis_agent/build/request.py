"""What a build is asked, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aegis_protocol.errors import AegisError
from aegis_protocol.rpc import BuildResult, BuildStartParams

from aegis_agent.source import PlannedSource


@dataclass(frozen=True)
class BuildRequest:
    """
    slot       of the job: builds of two slots never share a user
    cpu_cores  how many compilers run at once, rounded down, at least one
    memory_mb  of the job, for all that runs
    timeout_s  for all of it, from `run` on
    """

    identity: str
    job_id: str
    task_id: str
    planned: PlannedSource
    params: BuildStartParams
    slot: int
    cpu_cores: float
    memory_mb: int
    timeout_s: float
    agent_id: str


@dataclass(frozen=True)
class BuildOutcome:
    """result: what there is, also of a build that failed (its log and its errors)."""

    result: BuildResult
    error: AegisError | None


class Output(Protocol):
    """Where a build's terminal goes: `aegis_links.spool.Spool` is one."""

    def append(self, data: bytes) -> None:
        """Take `data`, at once."""


class OnProgress(Protocol):
    """Called with the phase and how far it is (total 0: not known), at most ten times a second."""

    def __call__(self, phase: str, done: int, total: int, detail: str = "") -> None: ...
