"""Joining a control plane: a token and our public key go out, the issuer's keys come back."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import aiohttp
import structlog
from aegis_protocol.errors import ErrorReply, from_body
from aegis_protocol.failures.http import ControlAnswerInvalid, ControlUnreachable
from aegis_protocol.http_api.enrollment import EnrollReply, EnrollRequest
from aegis_protocol.issuer_keys import sound
from aegis_protocol.signing import b64, enroll_statement
from pydantic import ValidationError

from aegis_agent.config import AgentConfig, ConfigInvalid
from aegis_agent.http import control_session, trust
from aegis_agent.identity import Enrollment, Identity, NotEnrolled

log = structlog.get_logger()

_MAX_REPLY_BYTES: Final = 65_536
_MAX_TOKEN_CHARS: Final = 256


async def enroll(config: AgentConfig, identity: Identity, token: str) -> Enrollment:
    """
    Enrol `identity` at control with `token` (one-time, or AGENT_AUTH_SECRET) and save the result.

    Raises control's own error (`enroll.refused` …), ControlUnreachable, ControlAnswerInvalid,
    ConfigInvalid for what can be no token, StateUnusable.
    """
    base_url = config.control_base_url
    if not (0 < len(token) <= _MAX_TOKEN_CHARS and token.isascii() and token.isprintable()):
        raise ConfigInvalid(f"a token is 1 to {_MAX_TOKEN_CHARS} printable ASCII characters")
    digest = sha256(token.encode()).hexdigest()
    request = EnrollRequest(
        token=token,
        name=config.name,
        public_key=identity.public_text,
        signature=b64(identity.sign(enroll_statement(digest, base_url))),
        base_url=base_url,
    )
    session = control_session(trust(config.ca_file), connect_timeout_s=config.connect_timeout_s)
    async with session:
        try:
            async with session.post(
                f"{base_url}/agents/enroll",
                json=request.model_dump(mode="json"),
                allow_redirects=False,  # the token is for this host alone
            ) as response:
                body = await _limited(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            why = str(exc) or "no answer in time"
            raise ControlUnreachable(f"control at {base_url} can't be reached: {why}") from exc
    try:
        if status >= 400:
            raise from_body(ErrorReply.model_validate_json(body).error)
        reply = EnrollReply.model_validate_json(body)
    except ValidationError as exc:
        raise ControlAnswerInvalid(f"{base_url} answered {status} with something else") from exc
    keys = sound(reply.issuer_keys)
    enrollment = Enrollment(base_url=base_url, agent_id=reply.agent_id, issuer_keys=keys)
    if reply.agent_id != identity.agent_id or not keys:
        raise ControlAnswerInvalid("control enrolled us under another id, or gave no issuer key")
    enrollment.save(config.state_dir)
    log.info("agent.enrolled", agent_id=identity.agent_id, control=base_url)
    return enrollment


async def enrolled(config: AgentConfig, identity: Identity) -> Enrollment:
    """
    Return the enrolment at the configured control; enrol with AGENT_AUTH_SECRET if need be.

    Raises NotEnrolled when there is neither an enrolment nor a secret.
    """
    present = Enrollment.open(config.state_dir)
    ours = (config.control_base_url, identity.agent_id)
    if present is not None and (present.base_url, present.agent_id) == ours:
        return present
    if config.agent_auth_secret is None:
        raise NotEnrolled(f"this agent is not enrolled at {config.control_base_url}")
    return await enroll(config, identity, config.agent_auth_secret.get_secret_value())


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    """The body, or its first 64 KiB: more than any reply has."""
    body = bytearray()
    async for piece in response.content.iter_chunked(4096):
        body += piece
        if len(body) > _MAX_REPLY_BYTES:
            break
    return bytes(body)
