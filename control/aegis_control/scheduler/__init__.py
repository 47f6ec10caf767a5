"""
Who gets what: from waiting jobs and agents to matches, and for every other job why it waits.

Pure: nothing here waits, reads a clock or writes, and the same question has the same answer. Sets
of agents are bits of an integer, so that five hundred jobs and a thousand agents take milliseconds.
"""

from aegis_control.scheduler.capability import satisfies
from aegis_control.scheduler.decide import decide
from aegis_control.scheduler.known import KnownFleet
from aegis_control.scheduler.leases import Place, allot, candidates
from aegis_control.scheduler.order import in_turn
from aegis_control.scheduler.words import AgentView, Decision, Leased, Match, WaitingJob

__all__ = [
    "AgentView",
    "Decision",
    "KnownFleet",
    "Leased",
    "Match",
    "Place",
    "WaitingJob",
    "allot",
    "candidates",
    "decide",
    "in_turn",
    "satisfies",
]
