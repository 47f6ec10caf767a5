"""Canceling a job: at once in the store when nothing runs yet, else with the agent's word."""

from __future__ import annotations

import asyncio
from typing import Final

from aegis_protocol.failures.http import JobOver
from aegis_protocol.states import IllegalMove, JobState, ended

from aegis_control.control import Control
from aegis_control.deadlines import tell_agent_to_end
from aegis_control.log import get_logger
from aegis_control.store.jobs import JobRecord

log = get_logger("jobs")

_AGENTS_WORD_S: Final = 5.0
"""How long a running job's agent has to say that it ended it."""


async def cancel(control: Control, job: JobRecord) -> JobRecord:
    """
    Cancel `job` and return it as it is then.

    Canceling what is canceled is no error. Raises JobOver when it ended otherwise.
    """
    if job.state is JobState.CANCELED:
        return job
    if ended(job.state):
        raise JobOver(f"the job is {job.state} already", job_id=job.id, state=str(job.state))
    with control.hub.listen(job.id) as changed:
        told = await tell_agent_to_end(control.orders, job, "canceled at control")
        if told and job.state in (JobState.RUNNING, JobState.LOST):
            now = await _agents_word(control, job, changed)
            if ended(now.state):
                return now
    try:
        async with control.ledger.change() as change:
            return await change.move(job.id, JobState.CANCELED)
    except IllegalMove:  # it ended in this very moment
        return await control.ledger.get(job.id)


async def _agents_word(control: Control, job: JobRecord, changed: asyncio.Event) -> JobRecord:
    now = job
    try:
        async with asyncio.timeout(_AGENTS_WORD_S):
            while not ended(now.state):
                await changed.wait()
                changed.clear()
                now = await control.ledger.get(job.id)
    except TimeoutError:
        log.warning("agent.did_not_cancel", job_id=job.id, agent_id=job.agent_id)
    return now
