"""
`espctl test-connection`: every hop on the way to an agent, what was measured there, and advice.

One real connection is made, in a job of its own that needs no action and ends at once.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from aegis_links.ice_servers import ServerAnswer, ask_all
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import MethodUnknown

from aegis_client import candidates, doctor
from aegis_client.client import Client
from aegis_client.config import ClientConfig
from aegis_client.connection import Connection
from aegis_client.control import ControlClient
from aegis_client.doctor import Check, Report
from aegis_client.hops import Hop
from aegis_client.link_check import JOB_S, WAIT_S
from aegis_client.needs import LINK
from aegis_client.reporter import Silent
from aegis_client.throughput import Rate, rate, round_trip_s
from aegis_client.wish import Wish

LOOKS: Final = 5
FAR_S: Final = 0.3
SLOW_CONTROL_S: Final = 1.0
_ORDER: Final = ("settings", "control", "key", *(str(hop) for hop in Hop if hop is not Hop.CONTROL))


@dataclass
class Measured:
    """What was found, check by check; `error` is what stopped it."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    error: AegisError | None = None

    def add(self, name: str, detail: str, advice: str = "") -> None:
        self.checks.append(Check(name, "warning" if advice else "ok", detail, advice))

    def as_json(self) -> dict[str, Any]:
        return {**Report(tuple(self.checks)).as_json(), "figures": self.figures}


async def measure_connection(config: ClientConfig, agent: str | None) -> Measured:
    """Go all the way to `agent`, or to any; never raises an AegisError."""
    found = Measured()
    found.checks.append(doctor.network())
    at = "settings"
    try:
        async with Client.opened(config) as client:
            at = "control"
            await _control(client.control, found)
            at = "key"
            me = await client.control.whoami()
            found.add("key", f"{me.identity}, role {me.role}")
            at = "grant"
            wish = Wish(needs=LINK, timeout_s=JOB_S, wait_s=WAIT_S, agent=agent)
            async with client.session(wish, Silent()) as session:
                await _link(session.link.newest, client.control.trust, found)
                at = "agent"
                await _agent(session.link.newest, found)
    except AegisError as exc:
        found.error = exc
        _stopped(found, exc, at)
    return found


async def _control(control: ControlClient, found: Measured) -> None:
    looks = []
    for _ in range(LOOKS):
        asked_at, began = time.time(), time.monotonic()
        health = await control.health()
        took_s = time.monotonic() - began
        looks.append((took_s, asked_at + took_s / 2, health))
    # The quickest answer says best what control's clock was.
    _, here, health = min(looks, key=lambda look: look[0])
    latency_s = median(took_s for took_s, _, _ in looks)
    found.figures["control_latency_s"] = round(latency_s, 6)
    found.figures["clock_skew_s"] = round(here - health.time, 3)
    found.add(
        "control",
        f"{control.url}, version {health.version}: answers in {_ms(latency_s)}",
        "Control is far or busy: connecting takes several of its answers."
        if latency_s > SLOW_CONTROL_S
        else "",
    )
    found.checks.append(doctor.clock(health, here))


async def _link(connection: Connection, tls: ssl.SSLContext, found: Measured) -> None:
    """What the way to the open link has shown."""
    took_s, link = connection.took_s, connection.link
    figures = found.figures
    figures["hops_s"] = {str(hop): round(seconds, 6) for hop, seconds in took_s.items()}
    channels = " ".join(connection.grant.allowed_channels)
    found.add("grant", f"for {connection.agent.name}, channels {channels}")
    found.add("signalling", f"the agent answered in {_ms(took_s.get(Hop.SIGNALLING, 0))}")
    answers = await ask_all(connection.grant.ice_servers, tls=tls)
    ours, theirs = candidates.kinds(link.offer_sdp), candidates.kinds(connection.answer_sdp)
    figures["candidates"] = {"here": ours, "agent": theirs}
    figures["ice_servers"] = [vars(answer) for answer in answers]
    relayed = "relay" in link.path
    figures["path"], figures["relayed"] = link.path, relayed
    figures["pair"] = list(link.pair) if link.pair else None
    found.add(
        "ice",
        f"addresses here: {candidates.told(ours)}; at the agent: {candidates.told(theirs)}",
        _candidates_advice(ours, theirs, answers),
    )
    for answer in answers:
        found.checks.append(_server(answer))
    if link.relay_unavailable is not None:
        refused = link.relay_unavailable
        found.checks.append(Check("relay", "warning", refused.message, refused.remedy))
    pair = " to ".join(link.pair) if link.pair else "unknown"
    found.add(
        "path",
        f"{'relayed' if relayed else 'direct'} ({link.path}), {pair}; "
        f"found in {_ms(took_s[Hop.ICE])}",
        "The bytes take the way over the TURN server: allow UDP between the two machines for a "
        "direct one."
        if relayed
        else "",
    )
    found.add("dtls", f"the agent proved who it is; open {_ms(took_s[Hop.DTLS])} later")


async def _agent(connection: Connection, found: Measured) -> None:
    try:
        rtt_s = await round_trip_s(connection)
    except MethodUnknown as exc:
        found.checks.append(
            Check("agent", "warning", "an agent of this version can't be measured", exc.remedy)
        )
        return
    up, down = await rate(connection, "up"), await rate(connection, "down")
    found.figures |= {
        "rtt_s": round(rtt_s, 6),
        "up_bytes_per_s": round(up.bytes_per_s),
        "down_bytes_per_s": round(down.bytes_per_s),
        "measured_bytes": {"up": up.size_bytes, "down": down.size_bytes},
    }
    found.add(
        "agent",
        f"{connection.agent.name}, version {connection.hello.version}: answers in {_ms(rtt_s)}",
        "The way is long: typing feels slow, builds and downloads are fine."
        if rtt_s > FAR_S
        else "",
    )
    found.add(
        "throughput", f"{_speed(up)} to the agent, {_speed(down)} from it", _limits(connection)
    )


def _limits(connection: Connection) -> str:
    """What is measured are requests, which no limit holds back."""
    grant = connection.grant
    limits = [
        f"{limit} {unit}"
        for limit, unit in (
            (grant.max_bandwidth_kbps, "kbit/s"),
            (grant.max_message_rate, "messages per second"),
        )
        if limit
    ]
    return f"The grant slows files and terminals to {' and '.join(limits)}." if limits else ""


def _candidates_advice(
    ours: dict[str, int], theirs: dict[str, int], answers: tuple[ServerAnswer, ...]
) -> str:
    if not answers and set(ours) <= {"host"} and set(theirs) <= {"host"}:
        return (
            "Control names no STUN or TURN server: agents behind another NAT can't be reached "
            "(docs/networks.md)."
        )
    return ""


def _server(answer: ServerAnswer) -> Check:
    if answer.reason is None:
        return Check("ice_server", "ok", f"{answer.url} answers")
    return Check(
        "ice_server",
        "warning",
        f"{answer.url}: {answer.reason}",
        "Start it, open its port for this machine, or take it out of control's settings.",
    )


def _stopped(found: Measured, error: AegisError, at: str) -> None:
    """Put the error at its hop: those before it were passed, those after it not looked at."""
    failed = str(error.facts.get("hop", at))
    done = {check.name for check in found.checks}
    for name in _ORDER[: _ORDER.index(failed)]:
        if name not in done and name != "settings":
            found.add(name, "passed")
    found.checks.append(Check.failed(failed, error))
    for name in _ORDER[_ORDER.index(failed) + 1 :]:
        if name not in done:
            found.checks.append(Check(name, "skipped", f"{failed} failed"))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _speed(measured: Rate) -> str:
    return f"{measured.bytes_per_s / 1e6:.1f} MB/s"
