"""
In which order jobs are served.

The higher priority first. Within one, identities take turns, the one with the least on agents
first; within an identity the oldest. A job's priority rises by one for every ten minutes that it
waits, up to the highest that anybody asks for. Of those that have waited for longer than that takes
each identity's oldest goes before all others: so none waits for ever behind jobs that come and go,
and a thousand old jobs of one identity give it no more than its turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from aegis_control.scheduler.words import WaitingJob

AGING_S: Final = 600.0


def in_turn(
    waiting: Iterable[WaitingJob], load: Mapping[str, int], *, now_s: float = 0.0
) -> list[WaitingJob]:
    """
    Return the jobs in the order in which they are served.

    load  how many jobs each identity has on agents already
    """
    jobs = sorted(waiting, key=lambda job: (job.created_at, job.id))
    top = max((job.priority for job in jobs), default=0)
    levels: dict[int, dict[str, list[WaitingJob]]] = defaultdict(lambda: defaultdict(list))
    patient: dict[str, WaitingJob] = {}
    for job in jobs:
        level = job.priority + int(waited_s(job, now_s) // AGING_S)
        if level > top and job.identity not in patient:
            patient[job.identity] = job
        else:
            levels[min(top, level)][job.identity].append(job)
    before: dict[str, int] = defaultdict(int, load)
    served = sorted(
        patient.values(), key=lambda job: (before[job.identity], job.created_at, job.id)
    )
    for job in served:
        before[job.identity] += 1
    for level in sorted(levels, reverse=True):
        rounds = [
            (before[identity] + turn, job.created_at, job.id, job)
            for identity, queue in levels[level].items()
            for turn, job in enumerate(queue)
        ]
        rounds.sort(key=lambda entry: entry[:3])
        served += [job for *_, job in rounds]
        for identity, queue in levels[level].items():
            before[identity] += len(queue)
    return served


def waited_s(job: WaitingJob, now_s: float) -> float:
    return max(0.0, now_s - job.created_at)
