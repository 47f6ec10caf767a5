"""
What an agent still has, against what control believes: decided when the agent says `hello`.

    the agent has it, control knows it over, moved or another's    the agent must end it
    the agent has it, control calls it assigned or lost            it runs
    the agent has it and says it is over                           it is over
    control calls it running or lost, the agent lacks it           it is gone: see `lacking`
    control calls it assigned, the agent lacks it                  nothing: its client will offer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aegis_protocol.control_link import HeldJob
from aegis_protocol.errors import ErrorBody
from aegis_protocol.states import JobState, ended

from aegis_control.store.jobs import LIVE, JobRecord

Move: TypeAlias = tuple[str, JobState, ErrorBody | None]
"""A job, what it becomes, and why where that is an end that is not good."""


@dataclass(frozen=True)
class Reconciliation:
    """over: the agent must end these. moves: to do in the store. gone: what the agent lacks."""

    over: tuple[str, ...]
    moves: tuple[Move, ...]
    gone: tuple[str, ...]


def reconcile(
    agent_id: str, held: Sequence[HeldJob], known: Mapping[str, JobRecord]
) -> Reconciliation:
    """known: the jobs that control has on this agent, and those that `held` names."""
    over: list[str] = []
    moves: list[Move] = []
    for have in held:
        job = known.get(have.job_id)
        if (
            job is None
            or job.agent_id != agent_id
            or job.state not in LIVE
            or have.attempt != job.attempt
        ):
            if not ended(have.state):
                over.append(have.job_id)
        elif ended(have.state):
            moves.append((job.id, have.state, have.error))
        elif job.state is not JobState.RUNNING and have.state is JobState.RUNNING:
            moves.append((job.id, JobState.RUNNING, None))
    has = {have.job_id for have in held}
    gone = tuple(
        job.id
        for job in known.values()
        if job.agent_id == agent_id
        and job.state in (JobState.RUNNING, JobState.LOST)
        and job.id not in has
    )
    return Reconciliation(tuple(over), tuple(moves), gone)
