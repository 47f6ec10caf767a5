"""
Known agents: whose Ed25519 key is whose, so that control can't put another in between.

A pin binds (control's URL, agent's name) to a key, and so to the id, which is the key's hash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from aegis_protocol.failures.agent import AgentKeyChanged, AgentNotTrusted
from aegis_protocol.failures.http import ControlAnswerInvalid
from aegis_protocol.ids import public_id
from aegis_protocol.model import UnixSeconds
from aegis_protocol.signing import unb64

from aegis_client.config import TrustMode
from aegis_client.store import Kept, Store, each, hashed

KEY_BYTES: Final = 32


class Pin(Kept):
    """key: base64url."""

    url: str
    name: str
    agent_id: str
    key: str
    pinned_at: UnixSeconds


@dataclass(frozen=True)
class AgentIdentity:
    """Who an agent is, once its id was seen to be its key's hash. key: 32 raw bytes."""

    id: str
    name: str
    key: bytes
    key_text: str

    @classmethod
    def checked(cls, agent_id: str, name: str, key_text: str) -> AgentIdentity:
        """Raises AgentKeyChanged when the id is not the key's."""
        try:
            key = unb64(key_text)
        except ValueError as exc:
            raise ControlAnswerInvalid(f"the key of agent {name!r} is not base64url") from exc
        if len(key) != KEY_BYTES:
            raise ControlAnswerInvalid(f"the key of agent {name!r} has not {KEY_BYTES} bytes")
        if public_id(key) != agent_id:
            raise AgentKeyChanged(
                f"the key that control shows for agent {name!r} is not the key of {agent_id}",
                agent_id=agent_id,
                agent=name,
            )
        return cls(agent_id, name, key, key_text)


class KnownAgents:
    """The pins for the agents of one control."""

    def __init__(self, store: Store, url: str) -> None:
        self._store, self._url = store, url

    def pin(self, name: str) -> Pin | None:
        pin = self._store.read(self._file(name), Pin)
        return pin if pin is not None and (pin.url, pin.name) == (self._url, name) else None

    def pins(self) -> list[Pin]:
        found = (pin for _, pin in each(self._store, "known_agents", Pin))
        return [pin for pin in found if pin.url == self._url]

    def check(self, agent: AgentIdentity, mode: TrustMode) -> bool:
        """
        Tell whether `agent` is known already; nothing is written.

        Raises
        ------
        AgentKeyChanged   its name is pinned to another key
        AgentNotTrusted   it is not pinned, and `mode` asks for that
        """
        known = self.pin(agent.name)
        if known is None and mode is TrustMode.PINNED:
            raise AgentNotTrusted(
                f"agent {agent.name!r} ({agent.id}) is not among the known agents",
                agent_id=agent.id,
                agent=agent.name,
            )
        if known is not None and known.key != agent.key_text:
            raise _changed(known, agent)
        return known is not None

    def pin_first(self, agent: AgentIdentity) -> None:
        """
        Pin an agent that has just proved that it holds its key, if its name is not pinned yet.

        Raises AgentKeyChanged when another program pinned another key meanwhile.
        """
        if not self._store.create(self._file(agent.name), self._pin(agent)):
            known = self.pin(agent.name)
            if known is not None and known.key != agent.key_text:
                raise _changed(known, agent)

    def trust(self, agent: AgentIdentity, expected: str | None) -> Pin:
        """
        Pin `agent`. expected: its key or id as read on the machine itself.

        Raises AgentKeyChanged when it is another one, or when another key is pinned and
        `expected` was not given.
        """
        known = self.pin(agent.name)
        if expected is not None and expected not in (agent.key_text, agent.id):
            raise AgentKeyChanged(
                f"control shows {agent.id} with key {agent.key_text} for agent {agent.name!r}, "
                "which is not the one you gave",
                agent_id=agent.id,
                agent=agent.name,
            )
        if expected is None and known is not None and known.key != agent.key_text:
            raise _changed(known, agent)
        pin = self._pin(agent)
        self._store.write(self._file(agent.name), pin)
        return pin

    def forget(self, name: str) -> bool:
        return self._store.remove(self._file(name))

    def _pin(self, agent: AgentIdentity) -> Pin:
        return Pin(
            url=self._url,
            name=agent.name,
            agent_id=agent.id,
            key=agent.key_text,
            pinned_at=time.time(),
        )

    def _file(self, name: str) -> str:
        return f"known_agents/{hashed(self._url, name)}.json"


def _changed(known: Pin, agent: AgentIdentity) -> AgentKeyChanged:
    return AgentKeyChanged(
        f"agent {agent.name!r} is known as {known.agent_id}, and control shows {agent.id}",
        known_agent_id=known.agent_id,
        agent_id=agent.id,
        agent=agent.name,
    )
