"""A running control: its parts, wired together, and the loops that belong to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aegis_control.auditing import Auditor
from aegis_control.config import ControlConfig
from aegis_control.deadlines import Deadlines, Graces
from aegis_control.enrollment import Enrollment
from aegis_control.explaining import Explaining
from aegis_control.feed import Feed
from aegis_control.fleet import FleetMirror
from aegis_control.granting import Granting
from aegis_control.hub import Hub
from aegis_control.issuer import Issuer
from aegis_control.jobs import Jobs
from aegis_control.keyring import Keyring
from aegis_control.leasing import Leasing
from aegis_control.link.endpoint import LinkEndpoint
from aegis_control.link.orders import Orders
from aegis_control.link.others import Others
from aegis_control.link.pulse import Pulse
from aegis_control.link.registry import Links
from aegis_control.membership import Membership
from aegis_control.metrics import Metrics
from aegis_control.ordering import Ordering
from aegis_control.placement import Placement
from aegis_control.policy.in_force import PolicyInForce
from aegis_control.presence import Presence
from aegis_control.rate_limits import RateLimits
from aegis_control.replica import Replica
from aegis_control.revoking import Revoking
from aegis_control.rotation import Rotation
from aegis_control.sealing import Seal
from aegis_control.signaling import Signaling
from aegis_control.slow import SlowOperations
from aegis_control.state_dir import StateDir
from aegis_control.store import agents, jobs
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE
from aegis_control.store.listening import listen
from aegis_control.store.mirror import Mirror
from aegis_control.streams import Streams
from aegis_control.watchdog import feed, watchdog_s

_LOOPS_END_S: Final = 6.0
"""Longer than SQLite waits for a lock."""


@dataclass(frozen=True)
class Control:
    """
    changed   set to have the scheduler look
    stopping  set once; health turns to draining, streams and links end
    """

    config: ControlConfig
    base_url: str
    database: Database
    issuer: Issuer
    policy: PolicyInForce
    keyring: Keyring
    rates: RateLimits
    enrollment: Enrollment
    hub: Hub
    presence: Presence
    metrics: Metrics
    slow: SlowOperations
    links: Links
    others: Others
    orders: Orders
    replica: Replica
    ledger: Jobs
    placement: Placement
    granting: Granting
    ordering: Ordering
    leasing: Leasing
    membership: Membership
    explaining: Explaining
    signaling: Signaling
    revoking: Revoking
    rotation: Rotation
    link_endpoint: LinkEndpoint
    pulse: Pulse
    deadlines: Deadlines
    auditor: Auditor
    feed: Feed
    streams: Streams
    changed: asyncio.Event
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float = field(default_factory=time.time)

    def stop(self) -> None:
        """Take nothing new, end every stream and link."""
        self.stopping.set()
        self.changed.set()
        self.policy.ask()
        self.membership.wake()
        self.revoking.look_at("")
        self.rotation.wake()
        self.hub.notify_all()
        self.auditor.wake()
        self.others.wake()
        self.feed.wake()
        self.link_endpoint.close()


@asynccontextmanager
async def running(
    config: ControlConfig,
    database: Database,
    issuer: Issuer,
    policy: PolicyInForce,
    pepper: bytes,
    *,
    base_url: str,
) -> AsyncIterator[Control]:
    """A control with its loops running; both end with the block."""
    control = wire(config, database, issuer, policy, pepper, base_url=base_url)
    await control.rotation.begin()
    async with database.read() as conn:
        live = await jobs.in_states(conn, LIVE)
    control.links.expect({job.agent_id for job in live if job.agent_id is not None})
    await control.replica.join()
    await control.others.look_at_all()
    try:
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(
                    control.placement.run(control.ledger, control.stopping), name="placement"
                ),
                group.create_task(control.pulse.run(control.stopping), name="pulse"),
                group.create_task(control.deadlines.run(control.stopping), name="deadlines"),
                group.create_task(control.feed.run(control.stopping), name="events"),
                group.create_task(control.leasing.run(control.stopping), name="leases"),
                group.create_task(control.auditor.run(control.stopping), name="audit"),
                group.create_task(policy.run(database, control.stopping), name="policy"),
                group.create_task(control.membership.run(control.stopping), name="membership"),
                group.create_task(control.replica.run(control.stopping), name="replica"),
                group.create_task(control.others.run(control.stopping), name="others"),
                group.create_task(listen(database, control.stopping), name="bus"),
                group.create_task(control.revoking.run(control.stopping), name="revoking"),
                group.create_task(control.rotation.run(control.stopping), name="rotation"),
            ]
            if (within_s := watchdog_s()) is not None:
                fed = feed(database, control.placement, control.stopping, within_s=within_s)
                loops.append(group.create_task(fed, name="watchdog"))
            try:
                yield control
            finally:
                control.stop()
                await asyncio.wait(loops, timeout=_LOOPS_END_S)
                for loop in loops:
                    loop.cancel()
                await control.replica.leave()
    except BaseExceptionGroup as group_of_one:
        if len(group_of_one.exceptions) == 1:  # what the block raised is not wrapped
            raise group_of_one.exceptions[0] from None
        raise


def wire(
    config: ControlConfig,
    database: Database,
    issuer: Issuer,
    policy: PolicyInForce,
    pepper: bytes,
    *,
    base_url: str,
) -> Control:
    """Make the parts; nothing runs yet."""
    metrics, hub = Metrics(), Hub()
    presence = Presence(hub)
    slow = SlowOperations(config.slow_ms / 1000, metrics)
    database.timed = slow.note
    keyring = Keyring(
        database, pepper, mcp_secrets=config.mcp_secrets, agent_secrets=config.agent_secrets
    )
    rates = RateLimits(
        per_address=config.rate_per_address,
        per_key=config.rate_per_key,
        failures=config.rate_failures,
    )
    changed = asyncio.Event()
    links = Links(metrics, on_change=changed.set)
    others = Others(database, links)
    orders = Orders(database, links)
    database.bus.subscribe("job", hub.notify)
    database.bus.subscribe("agent", lambda _: changed.set())
    agent_records = Mirror(database, "agent", agents.some)
    open_jobs = Mirror(database, "job", jobs.open_ones)
    fleet = FleetMirror(database, links, agent_records, open_jobs)
    leasing = Leasing(database, fleet, orders, max_s=config.lease_max_s, idle_s=config.lease_idle_s)
    database.bus.subscribe("lease", lambda _: changed.set())
    placement = Placement(database, fleet, open_jobs, leasing, metrics, changed)
    ledger = Jobs(database, metrics, on_room=changed.set)
    granting = Granting(
        config,
        agent_records,
        open_jobs,
        issuer,
        policy,
        ledger,
        links,
        placement,
        presence,
        metrics,
        base_url=base_url,
    )
    revoking = Revoking(database, ledger, links)
    pulse = Pulse(links, silence_s=config.link_timeout_s)
    return Control(
        config=config,
        base_url=base_url,
        database=database,
        issuer=issuer,
        policy=policy,
        keyring=keyring,
        rates=rates,
        enrollment=Enrollment(database, keyring, issuer, base_url=base_url),
        hub=hub,
        presence=presence,
        metrics=metrics,
        slow=slow,
        changed=changed,
        links=links,
        others=others,
        orders=orders,
        replica=Replica(database, ledger, links, address=base_url, on_death=changed.set),
        ledger=ledger,
        placement=placement,
        granting=granting,
        revoking=revoking,
        rotation=Rotation(
            database,
            issuer,
            links,
            Seal(config.seal_keys) if config.seal_keys else None,
            StateDir(config.state_dir).issuer_key,
        ),
        ordering=Ordering(ledger, orders),
        explaining=Explaining(database, keyring, issuer),
        leasing=leasing,
        membership=Membership(database, ledger, links, agent_records),
        signaling=Signaling(issuer, ledger, orders, granting, metrics),
        feed=Feed(database),
        streams=Streams(database, metrics),
        auditor=Auditor(database, issuer, keep_days=config.audit_keep_days),
        link_endpoint=LinkEndpoint(
            database,
            issuer,
            ledger,
            links,
            metrics,
            rates,
            presence,
            proxies=config.trusted_proxies,
            on_linked=revoking.look_at,
            base_url=base_url,
            ice_urls=(*config.stun_urls, *config.turn_urls),
            pulse=pulse,
            greet_s=config.connect_timeout_s,
            on_up=leasing.tell_again,
        ),
        pulse=pulse,
        deadlines=Deadlines(
            database,
            open_jobs,
            ledger,
            links,
            orders,
            presence,
            Graces(
                absent_after_s=config.absent_after_s,
                max_wait_s=config.max_wait_s,
                connect_grace_s=config.connect_grace_s,
                lost_after_s=config.lost_after_s,
                failed_after_s=config.failed_after_s,
            ),
        ),
    )
