"""
What stands between this machine and an agent, checked one thing after the other.

A check that can't be made because an earlier one failed is `skipped`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import aegis_protocol
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import NoCandidates
from aegis_protocol.grant import LEEWAY_S
from aegis_protocol.http_api.health import Health
from aegis_protocol.states import AgentState

from aegis_client import accounts
from aegis_client.config import ClientConfig, TrustMode
from aegis_client.control import ControlClient
from aegis_client.store import Store
from aegis_client.trust import KnownAgents

Status = Literal["ok", "warning", "error", "skipped"]
SKEW_WARNING_S: Final = 5.0


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    detail: str
    remedy: str = ""

    @classmethod
    def failed(cls, name: str, error: AegisError) -> Check:
        return cls(name, "error", f"{error.message} ({error.code})", error.remedy)


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        seen = {check.status for check in self.checks}
        return "error" if "error" in seen else "warning" if "warning" in seen else "ok"

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "checks": [vars(check) for check in self.checks],
            "errors": [
                f"{check.name}: {check.detail}" for check in self.checks if check.status == "error"
            ],
        }


async def examine(config: ClientConfig) -> Report:
    """Make every check; never raises an AegisError."""
    return Report(tuple([check async for check in _checks(config)]))


async def _checks(config: ClientConfig) -> AsyncIterator[Check]:
    yield network()
    try:
        store = Store.open(config)
        account = accounts.resolve(config, store)
    except AegisError as exc:
        yield Check.failed("store", exc)
        yield Check("control_plane", "skipped", "there is no store")
        return
    yield Check("store", "ok", str(store.root))
    try:
        async with ControlClient.connected(config, account) as control:
            async for check in _control(control, account.key is not None):
                yield check
            if account.key is not None:
                async for check in _fleet(control, KnownAgents(store, account.url), config.trust):
                    yield check
            else:
                yield Check(
                    "key",
                    "error",
                    f"there is no key for {account.url}",
                    "Run `espctl login URL`, or set MCP_AUTH_SECRET to an API key.",
                )
    except AegisError as exc:
        yield Check.failed("tls", exc)


def network() -> Check:
    """Whether there is an address that a peer connection can use."""
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            # Connecting a UDP socket sends nothing; it asks for the route and its source address.
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                address = probe.getsockname()[0]
        except OSError:
            continue
        if not address.startswith("127.") and address != "::1":
            return Check("network", "ok", f"peers can reach this machine from {address}")
    return Check(
        "network",
        "warning",
        "no route to other machines: only an agent on a network of this machine can be reached",
        NoCandidates.remedy,
    )


async def _control(control: ControlClient, has_key: bool) -> AsyncIterator[Check]:
    try:
        asked_at = time.time()
        health = await control.health()
        took_s = time.time() - asked_at
    except AegisError as exc:
        yield Check.failed("control_plane", exc)
        return
    detail = f"{control.url}, version {health.version}, {health.agents_online} agents online"
    if health.status == "ok":
        yield Check("control_plane", "ok", detail)
    else:
        yield Check(
            "control_plane",
            "error",
            f"{control.url} is {health.status} (store: {health.store})",
            "Look at control's log.",
        )
    yield _version(health)
    yield clock(health, asked_at + took_s / 2)


def _version(health: Health) -> Check:
    if health.protocol == aegis_protocol.PROTOCOL_VERSION:
        return Check("version", "ok", f"protocol {health.protocol} on both sides")
    return Check(
        "version",
        "error",
        f"control speaks protocol {health.protocol}, espctl {aegis_protocol.PROTOCOL_VERSION}",
        "Install the same version of aegis-esp on both sides.",
    )


def clock(health: Health, here: float) -> Check:
    """How far control's clock is from this one, which was `here` when control looked at its own."""
    skew_s = here - health.time
    remedy = "Set the clocks (for example with systemd-timesyncd)."
    detail = f"this clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} control's"
    if abs(skew_s) > LEEWAY_S:
        # Grants are checked by the agent's clock, not by this one: a warning all the same.
        return Check("clock", "warning", detail, remedy)
    if abs(skew_s) > SKEW_WARNING_S:
        return Check("clock", "warning", detail, remedy)
    return Check("clock", "ok", detail)


async def _fleet(
    control: ControlClient, known: KnownAgents, trust: TrustMode
) -> AsyncIterator[Check]:
    try:
        me = await control.whoami()
    except AegisError as exc:
        yield Check.failed("key", exc)
        return
    yield Check("key", "ok", f"{me.identity}, role {me.role}")
    try:
        agents = (await control.agents()).agents
    except AegisError as exc:
        yield Check.failed("agents", exc)
        return
    usable = [agent for agent in agents if agent.state is AgentState.ONLINE]
    if usable:
        yield Check("agents", "ok", ", ".join(f"{a.name} ({' '.join(a.targets)})" for a in usable))
    else:
        yield Check(
            "agents",
            "warning",
            "no agent is online" if not agents else f"none of {len(agents)} agents is usable",
            "Start one: `aegis-agent run`; `espctl agents` shows why one is not usable.",
        )
    pins = {agent.name: known.pin(agent.name) for agent in agents}
    changed = [a.name for a in agents if (pin := pins[a.name]) is not None and pin.key != a.key]
    unknown = [a.name for a in agents if pins[a.name] is None]
    if changed:
        yield Check(
            "trust",
            "error",
            f"the key of {', '.join(changed)} is not the pinned one",
            "Compare it on the machine, then `espctl agents trust NAME --key …`.",
        )
    elif unknown and trust is TrustMode.PINNED:
        yield Check(
            "trust",
            "warning",
            f"not pinned, and ESPCTL_TRUST=pinned: {', '.join(unknown)}",
            "Compare the key on the machine, then `espctl agents trust NAME`.",
        )
    else:
        pinned = len(agents) - len(unknown)
        yield Check("trust", "ok", f"{pinned} of {len(agents)} agents are pinned")
