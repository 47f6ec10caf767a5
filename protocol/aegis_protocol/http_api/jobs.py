"""Jobs, and why one waits."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aegis_protocol.model import Id, TargetName, UnixSeconds, Wire
from aegis_protocol.states import JobState


class Reason(Wire):
    """Why a job waits: a code, words, and the agents that it is true of: these and `more`."""

    code: str = Field(max_length=80)
    detail: str = Field(max_length=500)
    agents: tuple[str, ...] = ()
    more: int = Field(default=0, ge=0)

    def __str__(self) -> str:
        """As people read it: `agent.paused: disk 96 % (bench, lab and 3 more)`."""
        named = ", ".join(self.agents) + (f" and {self.more} more" if self.more else "")
        return f"{self.code}: {self.detail}" + (f" ({named})" if named else "")


class Job(Wire):
    id: Id
    identity: Id
    state: JobState
    created_at: UnixSeconds
    updated_at: UnixSeconds
    timeout_secs: int
    target: TargetName | None = None
    agent_id: Id | None = None
    agent_name: str | None = None
    attempt: int = 1
    boards: tuple[Id, ...] = ()
    project_key: Id | None = None
    reasons: tuple[Reason, ...] = ()
    error: dict[str, Any] | None = None
    """How it failed, as the error object."""


class JobList(Wire):
    jobs: tuple[Job, ...]
