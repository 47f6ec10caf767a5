"""
One attempt to reach the agent: pin check, offer, signed answer, link, greeting.

Not a byte of source leaves before the answer's signature was verified with the key that is
pinned for this agent, and the DTLS peer has the fingerprint that was signed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import aegis_protocol
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_protocol.channels import ChannelName
from aegis_protocol.events import Answer, Candidate
from aegis_protocol.failures.agent import AgentSignatureWrong, VersionMismatch
from aegis_protocol.failures.http import ControlAnswerInvalid
from aegis_protocol.fingerprint import Fingerprint, check_sdp
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.rpc import SessionHelloParams, SessionHelloResult
from aegis_protocol.signing import dtls_statement, unb64, verified

from aegis_client.config import TrustMode
from aegis_client.control import ControlClient
from aegis_client.hops import Attempt, Hop
from aegis_client.signals import Signals
from aegis_client.trust import AgentIdentity, KnownAgents

_MARGIN_S: Final = 0.2
"""The link tells how far it came when its own time is over: just before the attempt's is."""

COMPRESSIONS: Final = ("none", "deflate")

OnNotification = Callable[[str, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Greeted:
    """
    A link that is up to the agent that it should be.

    took_s  how long each hop has taken
    """

    agent: AgentIdentity
    first_met: bool
    link: PeerLink
    rpc: RpcPeer
    hello: SessionHelloResult
    answer_sdp: str
    took_s: Mapping[Hop, float]


def identified(grant: GrantReply, asked: str | None) -> AgentIdentity:
    """
    Return who the grant is for. asked: the agent's id or name, if the caller chose one.

    Raises AgentKeyChanged when the id is not the key's; ControlAnswerInvalid for another agent.
    """
    agent = AgentIdentity.checked(grant.agent_id, grant.agent_name, grant.agent_key)
    if asked is not None and asked not in (agent.id, agent.name):
        raise ControlAnswerInvalid(
            f"agent {asked!r} was asked for, and control gave {agent.name!r}",
            asked=asked,
            given=agent.name,
        )
    return agent


async def greet(
    stack: AsyncExitStack,
    control: ControlClient,
    signals: Signals,
    known: KnownAgents,
    trust: TrustMode,
    certificate: Certificate,
    grant: GrantReply,
    *,
    guide: IceGuide,
    asked: str | None,
    on_notification: OnNotification,
    attempt: Attempt,
) -> Greeted:
    """
    Connect with `grant`; what is opened is closed by `stack`. `attempt` is told of each hop.

    Raises
    ------
    AgentKeyChanged, AgentNotTrusted, AgentSignatureWrong   it is not the agent it should be
    NoCandidates, LinkNotOpened, LinkUnreachable, …         no way to it
    VersionMismatch                                         it speaks another protocol
    """
    agent = identified(grant, asked)
    was_known = known.check(agent, trust)
    link = await stack.enter_async_context(
        PeerLink.offering(
            certificate,
            channels=[ChannelName(name) for name in grant.allowed_channels if name in _NAMES],
            ice_servers=grant.ice_servers,
            guide=guide,
            max_bandwidth_kbps=grant.max_bandwidth_kbps,
            max_message_rate=grant.max_message_rate,
        )
    )
    attempt.reach(Hop.SIGNALLING)
    await signals.wait_connected()
    signals.closed = None
    sent = await control.offer(grant.job_id, grant.grant, link.offer_sdp)
    answer = await signals.answer(sent.jti)
    attempt.reach(Hop.DTLS)
    signed = _verified(answer, agent, certificate.fingerprint)
    await link.accept_answer(answer.sdp, expected_fingerprint=signed)
    for candidate in signals.candidates.get(sent.jti, []):
        _add(link, candidate)
    attempt.reach(Hop.ICE)
    await link.opened(deadline_s=max(0.1, attempt.left_s - _MARGIN_S))
    attempt.reach(Hop.AGENT)
    attempt.divide(Hop.ICE, link.way_found_s or 0.0, Hop.DTLS)
    if not was_known:
        known.pin_first(agent)
    rpc = await stack.enter_async_context(
        RpcPeer.over(link.channel(ChannelName.ESPCTL), on_notification=on_notification)
    )
    hello = SessionHelloResult.model_validate(
        await rpc.request(
            "session.hello",
            SessionHelloParams(
                protocol=aegis_protocol.PROTOCOL_VERSION,
                client=f"espctl/{aegis_protocol.__version__}",
                compressions=COMPRESSIONS,
            ).model_dump(mode="json"),
            deadline_s=max(0.1, attempt.left_s),
        )
    )
    if hello.protocol != aegis_protocol.PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the agent speaks protocol {hello.protocol}, this client "
            f"{aegis_protocol.PROTOCOL_VERSION}"
        )
    attempt.arrive()
    return Greeted(agent, not was_known, link, rpc, hello, answer.sdp, attempt.took_s)


def _verified(answer: Answer, agent: AgentIdentity, mine: Fingerprint) -> Fingerprint:
    """Return the agent's fingerprint once its signature over both fingerprints was verified."""
    theirs = check_sdp(answer.sdp)
    message = dtls_statement(agent.id, answer.job_id, answer.jti, mine.digest, theirs.digest)
    try:
        signature = unb64(answer.signature)
    except ValueError:
        signature = b""
    if not verified(agent.key, signature, message):
        raise AgentSignatureWrong(
            f"the answer is not signed by agent {agent.name!r} ({agent.id})", agent_id=agent.id
        )
    return theirs


def _add(link: PeerLink, candidate: Candidate) -> None:
    link.add_remote_candidate(candidate.candidate, candidate.sdpMid, candidate.sdpMLineIndex)


_NAMES: Final = frozenset(ChannelName)
