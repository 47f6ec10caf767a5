"""What builds have left behind, kept per identity."""

from aegis_agent.results.store import ResultDraft, ResultStore

__all__ = ["ResultDraft", "ResultStore"]
