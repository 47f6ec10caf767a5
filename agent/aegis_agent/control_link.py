"""
The agent's end of the link to control: one WebSocket, kept up for ever.

It is opened, signed, and read until it breaks; then again after a pause that doubles up to 30 s,
with jitter. Running jobs do not notice. Frames to control are queued while the link is up and
dropped while it is down: `hello` says afresh what is there, and what must not be lost
(`job.moved`) is said again by the one who owns it, at each `hello`. What control says is a
stranger's word: nothing in it may end the agent but a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import aiohttp
import structlog
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.control_link import (
    MAX_FRAME_BYTES,
    TO_AGENT,
    Challenge,
    Hello,
    IssuerKeys,
    Ping,
    Pong,
    Refused,
    ToAgent,
    ToControl,
    Welcome,
)
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.failures.agent import VersionMismatch
from aegis_protocol.failures.http import ControlAnswerInvalid, ControlUnreachable
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.ids import new_id
from aegis_protocol.signing import b64, link_statement
from pydantic import ValidationError

from aegis_agent.config import AgentConfig
from aegis_agent.http import control_session, trust
from aegis_agent.identity import Enrollment, Identity
from aegis_agent.state_dir import StateUnusable

log = structlog.get_logger()

_QUEUE_FRAMES: Final = 1024
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_AFTER_S: Final = 10.0
"""A link that lasted so long was one: the pauses begin anew."""
_CLOSE_S: Final = 2.0
_SILENCE_S: Final = (1.0, 120.0)
"""The shortest and the longest that control may ask the agent to bear silence."""
_FINAL_CODES: Final = frozenset({"link.refused", "agent.revoked", "protocol.version_mismatch"})
_PATIENT_CODES: Final = frozenset({"agent.key_cloned"})
"""Only a person mends these: tried again after the longest pause.

`link.superseded` is neither: were it final, a copy of this agent elsewhere could end it; as both
come back, control sees that there are two.
"""

HelloFacts = Callable[[], dict[str, object]]
OnFrame = Callable[[ToAgent], Awaitable[None]]


class ControlLink:
    """
    describe  the fields of `hello` that change: targets, boards, slots, jobs, …
    on_frame  called with every frame from control but the link's own; must not wait for the link

    Raises ConfigInvalid for a private CA that can't be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        identity: Identity,
        enrollment: Enrollment,
        *,
        describe: HelloFacts,
        on_frame: OnFrame,
        on_up: Callable[[Welcome], Awaitable[None]],
    ) -> None:
        self._config = config
        self._identity = identity
        self.enrollment = enrollment
        self._instance = new_id()
        self._describe = describe
        self._on_frame = on_frame
        self._on_up = on_up
        self._trust = trust(config.ca_file)
        self._out: asyncio.Queue[ToControl] | None = None
        self.skew_s: float | None = None
        self.up = False
        self.last_contact: float = time.monotonic()
        self.trouble: AegisError | None = None

    def send(self, frame: ToControl) -> bool:
        """Queue `frame`; False when the link is down or its queue is full (the frame is lost)."""
        if self._out is None:
            return False
        try:
            self._out.put_nowait(frame)
        except asyncio.QueueFull:
            # Control's picture of us is out of step now: the writer closes this link, and the
            # next `hello` tells all of it afresh.
            log.warning("link.queue_overflowed", frame=frame.type)
            self._out = None
            return False
        return True

    async def flush(self, *, deadline_s: float) -> None:
        """Wait until what was queued has been written; nothing is waited for without a link."""
        if self._out is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._out.join()

    async def run(self) -> None:
        """Keep the link up until canceled; raises only when control will never take us."""
        pause_s = _FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            try:
                await self._once()
            except AegisError as exc:
                self.trouble = exc
                if exc.code in _FINAL_CODES:
                    raise
                if exc.code in _PATIENT_CODES:
                    pause_s = _LONGEST_PAUSE_S
                log.warning("link.lost", code=exc.code, detail=exc.message, again_in_s=pause_s)
            finally:
                self.up = False
                self._out = None
            if time.monotonic() - started > _HEALTHY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _once(self) -> None:
        base_url = self._config.control_base_url
        url = f"{base_url}/agents/link"
        session = control_session(self._trust, connect_timeout_s=self._config.connect_timeout_s)
        async with session:
            try:
                async with (
                    asyncio.timeout(self._config.connect_timeout_s) as connecting,
                    session.ws_connect(
                        url,
                        compress=0,
                        max_msg_size=MAX_FRAME_BYTES,
                        timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    ) as socket,
                ):
                    welcome = await self._greet(socket)
                    connecting.reschedule(None)
                    await self._serve(socket, welcome)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                raise ControlUnreachable(
                    f"control at {base_url} can't be reached: {exc or 'no answer in time'}"
                ) from exc

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> Welcome:
        challenge = await self._receive(socket)
        if isinstance(challenge, Refused):
            raise from_body(challenge.error)
        if not isinstance(challenge, Challenge):
            raise ControlAnswerInvalid("control did not begin with a challenge")
        base_url = self._config.control_base_url
        if challenge.base_url.rstrip("/") != base_url:
            raise ControlAnswerInvalid(
                f"control calls itself {challenge.base_url}, this agent is for {base_url}",
                remedy="Set CONTROL_PUBLIC_BASE_URL on control and CONTROL_BASE_URL here alike.",
            )
        signature = self._identity.sign(link_statement(challenge.nonce, base_url))
        hello = Hello.model_validate(
            {
                "protocol": PROTOCOL_VERSION,
                "agent_id": self._identity.agent_id,
                "public_key": self._identity.public_text,
                "signature": b64(signature),
                "name": self._config.name,
                "slots": self._config.slots,
                "cpu_cores": self._config.cpu_cores,
                "memory_mb": self._config.memory_mb,
                "labels": self._config.labels,
                "clock": time.time(),
                "instance": self._instance,
                **self._describe(),
            }
        )
        await socket.send_str(hello.model_dump_json())
        welcome = await self._receive(socket)
        if isinstance(welcome, Refused):
            raise from_body(welcome.error)
        if not isinstance(welcome, Welcome):
            raise ControlAnswerInvalid("control answered hello with something else")
        if welcome.protocol != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"control speaks protocol {welcome.protocol}, this agent {PROTOCOL_VERSION}"
            )
        return welcome

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse, welcome: Welcome) -> None:
        self.skew_s = time.time() - welcome.server_time
        self._learn(welcome.issuer_keys)
        self._out = asyncio.Queue(_QUEUE_FRAMES)
        self.up = True
        self.trouble = None
        self.last_contact = time.monotonic()
        log.info("link.opened", control=self._config.control_base_url, skew_s=round(self.skew_s, 3))
        await self._on_up(welcome)
        writing = asyncio.create_task(self._write(socket, self._out), name="control-link-writer")
        shortest_s, longest_s = _SILENCE_S
        try:
            await self._read(socket, min(max(welcome.silence_secs, shortest_s), longest_s))
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    def _learn(self, offered: Sequence[IssuerKey]) -> None:
        enrollment = self.enrollment.with_keys(offered)
        if enrollment == self.enrollment:
            return
        self.enrollment = enrollment
        log.info("issuer.key_added", kids=[key.kid for key in enrollment.issuer_keys])
        try:
            enrollment.save(self._config.state_dir)
        except StateUnusable as exc:  # the next welcome tells it again
            log.warning("enrollment.not_saved", detail=exc.message)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, silence_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    frame = await self._receive(socket)
            except TimeoutError as exc:
                raise ControlUnreachable(f"control was silent for {silence_s:.0f} s") from exc
            self.last_contact = time.monotonic()
            match frame:
                case Ping():
                    self.send(Pong(time=time.time()))
                case Refused():
                    raise from_body(frame.error)
                case Challenge() | Welcome():
                    raise ControlAnswerInvalid("control greeted twice")
                case IssuerKeys():
                    self._learn(frame.issuer_keys)
                case _:
                    await self._on_frame(frame)

    async def _write(
        self, socket: aiohttp.ClientWebSocketResponse, queue: asyncio.Queue[ToControl]
    ) -> None:
        while True:
            frame = await queue.get()
            try:
                async with asyncio.timeout(self._config.link_timeout_s):
                    await socket.send_str(frame.model_dump_json())
            except (aiohttp.ClientError, OSError, TimeoutError):
                break
            queue.task_done()
            if self._out is not queue:
                break
        await socket.close()

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> ToAgent:
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            try:
                return TO_AGENT.validate_json(message.data)
            except ValidationError as exc:
                if exc.errors(include_url=False)[0]["type"] != "union_tag_invalid":
                    raise ControlAnswerInvalid("control sent a frame that is none") from exc
                log.info("link.frame_unknown", detail="control is newer than this agent")
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                raise ControlAnswerInvalid("control sent a binary frame")
            case _:
                raise ControlUnreachable("control closed the link")
