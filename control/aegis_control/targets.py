"""What a request may ask for: chips that exist, versions that can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aegis_protocol.failures.http import BadRequest, TargetUnknown
from aegis_protocol.http_api.grants import GrantWish
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from aegis_control.store.agents import AgentRecord

KNOWN: Final = frozenset(
    {
        "esp8266",
        "esp32",
        "esp32c2",
        "esp32c3",
        "esp32c5",
        "esp32c6",
        "esp32c61",
        "esp32h2",
        "esp32h21",
        "esp32h4",
        "esp32p4",
        "esp32s2",
        "esp32s3",
        "esp32s31",
    }
)
"""The chips that esptool 5.6 knows. An agent may bring others."""


def check_target(target: str, fleet: Iterable[AgentRecord]) -> None:
    """Raise TargetUnknown unless `target` is a known chip or one that an agent builds for."""
    if target in KNOWN:
        return
    told = {
        name
        for agent in fleet
        if agent.hello is not None
        for names in (agent.hello.targets, *(chain.targets for chain in agent.hello.toolchains))
        for name in names
    }
    if target not in told:
        raise TargetUnknown(
            f"there is no target {target}", target=target, known=sorted(KNOWN | told)
        )


def check_version_wish(request: GrantWish) -> None:
    """Raise BadRequest unless the toolchain's version is a PEP 440 specifier."""
    if request.toolchain is None or not request.toolchain.version:
        return
    try:
        SpecifierSet(request.toolchain.version)
    except InvalidSpecifier as exc:
        raise BadRequest(
            f"toolchain.version: {request.toolchain.version!r} is no specifier such as >=6.1",
            field="toolchain.version",
        ) from exc
