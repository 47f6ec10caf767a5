"""Agents, and what operators order them to do."""

from __future__ import annotations

from pydantic import Field

from aegis_protocol.board import Board
from aegis_protocol.http_api.toolchains import Toolchain
from aegis_protocol.model import Id, Labels, TargetName, UnixSeconds, Wire
from aegis_protocol.states import AgentState


class Agent(Wire):
    id: Id
    name: str
    key: str
    state: AgentState
    reason: str = ""
    """Why it is not usable, where it is not."""
    version: str = ""
    targets: tuple[TargetName, ...] = ()
    toolchains: tuple[Toolchain, ...] = ()
    slots: int = 1
    slots_free: int = 0
    cpu_cores: float = 0
    memory_mb: int = 0
    labels: Labels = Field(default_factory=dict)
    boards: tuple[Board, ...] = ()
    last_seen: UnixSeconds | None = None


class AgentList(Wire):
    agents: tuple[Agent, ...]


class PauseRequest(Wire):
    reason: str = Field(default="", max_length=200)


class DrainRequest(Wire):
    """deadline_secs: in how long what still runs is canceled (0: at once); null: it may finish."""

    reason: str = Field(default="", max_length=200)
    deadline_secs: float | None = Field(default=None, ge=0, le=7 * 86_400)


class RevokeAgentRequest(Wire):
    reason: str = Field(default="", max_length=200)
