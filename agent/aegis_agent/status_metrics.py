"""The agent's state as Prometheus reads it: counts and gauges, never who."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from aegis_agent.status_server import AgentStatus


def metrics(status: AgentStatus) -> bytes:
    """Return `status` in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, status: AgentStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        now = self._status
        plain = (
            ("linked", "1 while there is a link to control.", int(now.linked)),
            ("closed", "1 while no new jobs are taken.", int(now.closed is not None)),
            ("quarantined", "1 until an operator resets the agent.", int(now.quarantined)),
            ("slots", "Jobs that fit at once.", now.slots),
            ("sessions", "Open peer connections.", now.sessions),
            ("disk_used_ratio", "How full the state's disk is.", now.disk_used_percent / 100),
            ("start_time_seconds", "When the agent started (unix).", now.started_at),
        )
        for name, text, value in plain:
            yield GaugeMetricFamily(f"aegis_agent_{name}", text, value=value)
        yield _by("aegis_agent_jobs", "Jobs by state.", (str(job.state) for job in now.jobs))
        running = (kind for job in now.jobs for kind in job.running)
        yield _by("aegis_agent_tasks_running", "Tasks that run, by kind.", running, label="kind")
        yield _by("aegis_agent_boards", "Boards by state.", (str(b.state) for b in now.boards))
        ended = CounterMetricFamily(
            "aegis_agent_jobs_ended", "Jobs that ended, by how.", labels=["state"]
        )
        for state, count in sorted(now.jobs_ended.items()):
            ended.add_metric([state], count)
        yield ended


def _by(name: str, text: str, words: Iterable[str], *, label: str = "state") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for word, count in sorted(Counter(words).items()):
        family.add_metric([word], count)
    return family
