"""A stored job as its owner sees it."""

from __future__ import annotations

from collections.abc import Mapping

from aegis_protocol.http_api.jobs import Job

from aegis_control.store.jobs import JobRecord


def job_body(record: JobRecord, agent_names: Mapping[str, str]) -> Job:
    """agent_names: by agent id."""
    return Job(
        id=record.id,
        identity=record.identity,
        state=record.state,
        created_at=record.created_at,
        updated_at=record.updated_at,
        timeout_secs=record.request.timeout_secs,
        target=record.request.target,
        agent_id=record.agent_id,
        agent_name=agent_names.get(record.agent_id or ""),
        attempt=record.attempt,
        boards=tuple(record.boards),
        project_key=record.request.project_key,
        reasons=record.reasons,
        error=None if record.error is None else dict(record.error),
    )
