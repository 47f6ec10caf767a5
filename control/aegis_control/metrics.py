"""What Prometheus may know: counts and times, never who."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One registry per control, so that two in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "aegis_http_requests_total",
            "HTTP requests by route and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.refusals = Counter(
            "aegis_refusals_total", "Refused requests by code.", ["code"], registry=self.registry
        )
        self.grants = Counter("aegis_grants_total", "Grants issued.", registry=self.registry)
        self.offers = Counter(
            "aegis_offers_total", "Offers passed on to agents.", registry=self.registry
        )
        self.job_moves = Counter(
            "aegis_job_moves_total",
            "Moves of jobs by the state entered.",
            ["state"],
            registry=self.registry,
        )
        self.jobs = Gauge(
            "aegis_jobs", "Jobs that are not over, by state.", ["state"], registry=self.registry
        )
        self.agents_online = Gauge(
            "aegis_agents_online", "Agents with a live link.", registry=self.registry
        )
        self.event_streams = Gauge(
            "aegis_event_streams", "Open event streams.", registry=self.registry
        )
        self.links_ended = Counter(
            "aegis_links_ended_total",
            "Agents' links that ended, by cause.",
            ["cause"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "aegis_connections", "Open connections, local ones too.", registry=self.registry
        )
        self.connections_bounded = Counter(
            "aegis_connections_bounded_total",
            "New connections for which there was no room, by what was done.",
            ["done"],
            registry=self.registry,
        )
        self.slow_operations = Counter(
            "aegis_slow_operations_total",
            "Requests and transactions that took longer than AEGIS_SLOW_MS.",
            ["kind"],
            registry=self.registry,
        )
        self.tick_seconds = Histogram(
            "aegis_scheduler_tick_seconds",
            "Time of one scheduler tick.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)
