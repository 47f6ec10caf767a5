"""What a running control knows of its agents, jobs and replicas."""

from __future__ import annotations

from typing import Final

from aegis_protocol.http_api.agents import Agent
from aegis_protocol.states import AgentState, JobState

from aegis_control.doctor.check import Check, ok, skipped, warning
from aegis_control.doctor.subject import Subject

STUCK_S: Final = 600.0
SKEW_WARNING_S: Final = 5.0
_NAMED: Final = 5


def agents(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("agents", "no control answers")
    if not subject.answers.status.store_ok:
        return skipped("agents", "control's store does not answer")
    found = subject.answers.agents
    if not found:
        return warning(
            "agents",
            "none is enrolled: nothing can be built",
            "Make a token: aegis-control enroll-token create",
        )
    unusable = [agent for agent in found if agent.state is not AgentState.ONLINE]
    if unusable:
        return warning(
            "agents",
            f"{len(found) - len(unusable)} of {len(found)} take jobs; not {_names(unusable)}",
            "Look at `aegis-control list-agents`, and on the agent's machine at its log.",
        )
    return ok("agents", f"{len(found)} take jobs")


def agent_clocks(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("agent_clocks", "no control answers")
    names = {agent.id: agent.name for agent in subject.answers.agents}
    skews = subject.answers.status.skews_s.items()
    off = [f"{names.get(a, a)} by {s:+.1f} s" for a, s in skews if abs(s) > SKEW_WARNING_S]
    if off:
        return warning(
            "agent_clocks",
            f"off: {', '.join(off[:_NAMED])}",
            "Start a time service there: an agent with a wrong clock refuses grants.",
        )
    return ok("agent_clocks", "every linked agent's clock is right")


def pending_jobs(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("pending_jobs", "no control answers")
    now_s = subject.machine.now_s()
    stuck = [
        job
        for job in subject.answers.jobs
        if job.state is JobState.PENDING and now_s - job.created_at > STUCK_S
    ]
    lost = [job for job in subject.answers.jobs if job.state is JobState.LOST]
    if stuck:
        why = "; ".join(reason.detail for reason in stuck[0].reasons) or "not looked at yet"
        return warning(
            "pending_jobs",
            f"{len(stuck)} wait for more than ten minutes: {why}",
            "`aegis-control show-job ID` says why, agent by agent.",
        )
    if lost:
        return warning(
            "pending_jobs",
            f"{len(lost)} are lost: their agents have no link",
            "Bring those agents back within five minutes, or the jobs have failed.",
        )
    return ok("pending_jobs", "none waits for long")


def replicas(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("replicas", "no control answers")
    found = subject.answers.status.replicas
    dead = [one.name for one in found if not one.alive]
    versions = sorted({one.version for one in found if one.alive})
    if dead:
        return warning(
            "replicas", f"dead: {', '.join(dead)}", "Start them again, or leave them: they go."
        )
    if len(versions) > 1:
        return warning(
            "replicas",
            f"of different versions: {', '.join(versions)}",
            "Bring all to one version soon.",
        )
    return ok("replicas", f"{max(1, len(found))}")


def slow_operations(subject: Subject) -> Check:
    if subject.answers is None:
        return skipped("slow_operations", "no control answers")
    status = subject.answers.status
    if status.slow:
        counted = ", ".join(f"{number} of kind {kind}" for kind, number in status.slow.items())
        return warning(
            "slow_operations",
            f"over {status.slow_ms} ms since control started: {counted}",
            "`aegis-control status` shows the last ones; a slow disk or database is likely.",
        )
    return ok("slow_operations", f"none over {status.slow_ms} ms")


def _names(found: list[Agent]) -> str:
    named = [f"{a.name} ({a.reason or a.state})" for a in found[:_NAMED]]
    return ", ".join(named) + (" and others" if len(found) > _NAMED else "")
