"""A project's source on the agent: blobs that have arrived, and the workspaces built from them."""

from aegis_agent.source.layout import Owner, SyncReport
from aegis_agent.source.planned import PlannedSource
from aegis_agent.source.store import SourceStore
from aegis_agent.source.workspace import Workspace

__all__ = ["Owner", "PlannedSource", "SourceStore", "SyncReport", "Workspace"]
