"""Every check, in the order in which a person would mend what they find."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from aegis_control.doctor import (
    network_checks,
    policy_checks,
    relay_checks,
    running_checks,
    settings_checks,
    state_checks,
    store_checks,
    tls_checks,
)
from aegis_control.doctor.check import Check, Diagnosis
from aegis_control.doctor.subject import Subject

_SETTINGS: Final[tuple[Callable[[Subject], Check], ...]] = (
    settings_checks.config_files,
    settings_checks.public_base_url,
    settings_checks.origins,
    settings_checks.trusted_proxies,
    settings_checks.relay_entry,
)

_STATE: Final[tuple[Callable[[Subject], Check], ...]] = (
    state_checks.state_dir,
    state_checks.issuer_key,
    state_checks.pepper,
    state_checks.disk,
    state_checks.clock,
    state_checks.file_limit,
)

_RUNNING: Final[tuple[Callable[[Subject], Check], ...]] = (
    network_checks.control_plane,
    network_checks.version,
    running_checks.agents,
    running_checks.agent_clocks,
    running_checks.pending_jobs,
    running_checks.replicas,
    running_checks.slow_operations,
)


async def examine(subject: Subject) -> Diagnosis:
    """Make every check that can be made; what is wrong is in the answer, not raised."""
    return Diagnosis.of([check async for check in _checks(subject)])


async def _checks(subject: Subject) -> AsyncIterator[Check]:
    if subject.url is None:
        yield settings_checks.config(subject)
        if subject.loaded is not None:
            async for check in _on_this_machine(subject):
                yield check
    for look in _RUNNING:
        yield look(subject)
    yield await network_checks.public_url(subject)
    for check in await tls_checks.tls(subject):
        yield check


async def _on_this_machine(subject: Subject) -> AsyncIterator[Check]:
    for look in _SETTINGS:
        yield look(subject)
    for check in settings_checks.secrets(subject):
        yield check
    for check in policy_checks.policy(subject):
        yield check
    for look in _STATE:
        yield look(subject)
    for check in await store_checks.store(subject):
        yield check
    yield await network_checks.listening(subject)
    async for check in relay_checks.relays(subject):
        yield check
