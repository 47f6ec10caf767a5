"""What a session works with: the agent's parts, wired once by the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aegis_links.ice_guide import IceGuide
from aegis_protocol.control_link import ToControl

from aegis_agent.boards import BoardRegistry
from aegis_agent.build import Builder
from aegis_agent.config import AgentConfig
from aegis_agent.cut_uploads import CutUploads
from aegis_agent.identity import Identity
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.quarantine import Quarantine
from aegis_agent.results import ResultStore
from aegis_agent.source import SourceStore


@dataclass(frozen=True)
class Services:
    """
    incoming    a folder on the state's file system for what is being uploaded
    background  what goes on although the session that began it has ended
    """

    config: AgentConfig
    identity: Identity
    sources: SourceStore
    results: ResultStore
    builder: Builder
    boards: BoardRegistry
    quarantine: Quarantine
    guide: IceGuide
    incoming: Path
    cut_uploads: CutUploads
    background: OwnedTasks
    tell_control: Callable[[ToControl], bool]
