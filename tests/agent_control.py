"""
Control for the agent's tests: a real WebSocket that speaks the link's models, with a real key.

    async with ControlPlane.running() as control:
        await control.linked()
        control.send(Pause(reason="…"))
        status = await control.heard(Status)

It believes whatever an agent says and lets the test say the rest; `greet` may be replaced by a
control that behaves otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from types import MappingProxyType
from typing import Any, TypeVar

from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import (
    TO_CONTROL,
    Challenge,
    Hello,
    JobOffer,
    Ping,
    Pong,
    Refused,
    Revocation,
    Standing,
    ToAgent,
    ToControl,
    Welcome,
)
from aegis_protocol.errors import AegisError, ErrorReply
from aegis_protocol.failures.http import EnrollRefused
from aegis_protocol.grant import Execution, GrantClaims, WebRtcLimits, sign
from aegis_protocol.http_api.enrollment import EnrollReply, EnrollRequest
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.ids import new_id, public_id
from aegis_protocol.signing import (
    b64,
    enroll_statement,
    issuer_statement,
    link_statement,
    public_bytes,
    unb64,
    verified,
)
from aiohttp import WSMsgType, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from waiting import until

TOKEN = "one-time-token"
EVERYTHING = tuple(Action)

Frame = TypeVar("Frame", bound=ToControl)
Greet = Callable[["ControlPlane", web.WebSocketResponse], Awaitable[None]]


class ControlPlane:
    """Made by `running`. Change its fields to change what it does."""

    def __init__(self) -> None:
        self.url = ""
        self.base_url: str | None = None
        """What it calls itself; None: what it is."""
        self.key = Ed25519PrivateKey.generate()
        self.kid = "kid-1"
        self.issuer_keys: tuple[IssuerKey, ...] = (issuer_key(self.key, self.kid),)
        self.over_jobs: tuple[str, ...] = ()
        self.revocations: tuple[Revocation, ...] = ()
        self.revoked_through: int | None = None
        """None: as far as the agent says."""
        self.standing = Standing()
        self.refusal: AegisError | None = None
        self.silence_secs = 15.0
        self.clock_ahead_s = 0.0
        self.enroll_answer: web.Response | None = None
        self.enrollments: list[EnrollRequest] = []
        self.hellos: list[Hello] = []
        self.frames: list[ToControl] = []
        self.connections = 0
        self.greet: Greet = ControlPlane.welcome
        self.sockets: list[web.WebSocketResponse] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[ControlPlane]:
        control = cls()
        await control.start()
        try:
            yield control
        finally:
            await control.stop()

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        app = web.Application()
        app.router.add_post("/agents/enroll", self._enroll)
        app.router.add_get("/agents/link", self._link)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Cut every link, as a control does that is killed."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()

    def cut(self) -> None:
        """Cut every link without a word."""
        for socket in self.sockets:
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        self.sockets.clear()

    async def linked(self, *, again: bool = False) -> Hello:
        """Return the hello of the link that is up; again: of the next one."""
        before = len(self.hellos)
        await until(lambda: self.sockets and (not again or len(self.hellos) > before), within_s=15)
        return self.hellos[-1]

    def send(self, frame: ToAgent) -> None:
        """Send on the newest link."""
        self.send_text(frame.model_dump_json())

    def send_text(self, text: str) -> None:
        task = asyncio.create_task(self.sockets[-1].send_str(text))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def heard(
        self,
        kind: type[Frame],
        that: Callable[[Frame], bool] = lambda _: True,
        *,
        within_s: float = 10,
    ) -> Frame:
        """Return the first frame of `kind` that holds `that`, waiting for it."""

        def look() -> Frame | None:
            return next((f for f in self.frames if isinstance(f, kind) and that(f)), None)

        try:
            return await until(look, within_s=within_s)
        except TimeoutError:
            raise AssertionError(f"no such {kind.__name__} among {self.frames}") from None

    def all(self, kind: type[Frame]) -> list[Frame]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def claims(
        self,
        agent_id: str,
        fingerprint: str,
        limits: Mapping[str, int] = MappingProxyType({}),
        **changes: Any,
    ) -> GrantClaims:
        """A grant of everything, but for `changes`; limits: of the link."""
        now = time.time() + self.clock_ahead_s
        fields: dict[str, Any] = {
            "iss": self.url,
            "sub": "key-1",
            "aud": agent_id,
            "jti": new_id(),
            "iat": now,
            "nbf": now,
            "exp": now + 30,
            "job_id": new_id(),
            "actions": EVERYTHING,
            "webrtc": WebRtcLimits(
                allowed_channels=tuple(ChannelName), peer_fingerprint=fingerprint, **limits
            ),
            "execution": Execution(target="esp32p4", timeout_secs=600),
        }
        return GrantClaims(**(fields | changes))

    def offer(self, claims: GrantClaims, sdp: str) -> JobOffer:
        """Send the offer that a client would have posted with that grant."""
        grant = sign(claims, self.key, self.kid)
        offer = JobOffer(job_id=claims.job_id, jti=claims.jti, grant=grant, sdp=sdp)
        self.send(offer)
        return offer

    async def welcome(self, socket: web.WebSocketResponse) -> None:
        """How control greets and serves an agent."""
        nonce = new_id()
        base_url = self.base_url or self.url
        await socket.send_str(Challenge(nonce=nonce, base_url=base_url).model_dump_json())
        message = await socket.receive()
        if message.type is not WSMsgType.TEXT:
            return
        hello = TO_CONTROL.validate_json(message.data)
        assert isinstance(hello, Hello)
        key = unb64(hello.public_key)
        assert public_id(key) == hello.agent_id
        assert verified(key, unb64(hello.signature), link_statement(nonce, base_url))
        if self.refusal is not None:
            await socket.send_str(Refused(error=self.refusal.body()).model_dump_json())
            return
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            server_time=time.time() + self.clock_ahead_s,
            issuer_keys=self.issuer_keys,
            ping_secs=5,
            silence_secs=self.silence_secs,
            over_jobs=self.over_jobs,
            revocations=self.revocations,
            revoked_through=(
                hello.revoked_through if self.revoked_through is None else self.revoked_through
            ),
            standing=self.standing,
        )
        await socket.send_str(welcome.model_dump_json())
        self.hellos.append(hello)
        self.sockets.append(socket)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                return
            self.frames.append(TO_CONTROL.validate_json(message.data))

    async def pinged(self) -> None:
        """Wait until the agent has taken all that was sent before."""
        before = len(self.all(Pong))
        self.send(Ping(time=time.time()))
        await until(lambda: len(self.all(Pong)) > before)

    async def _link(self, request: web.Request) -> web.StreamResponse:
        assert "Origin" not in request.headers
        self.connections += 1
        socket = web.WebSocketResponse(compress=False, timeout=1)
        await socket.prepare(request)
        try:
            await self.greet(self, socket)
        except ConnectionError:
            pass
        finally:
            if socket in self.sockets:
                self.sockets.remove(socket)
        return socket

    async def _enroll(self, request: web.Request) -> web.Response:
        if self.enroll_answer is not None:
            return self.enroll_answer
        wish = EnrollRequest.model_validate_json(await request.read())
        self.enrollments.append(wish)
        key = unb64(wish.public_key)
        statement = enroll_statement(sha256(wish.token.encode()).hexdigest(), wish.base_url)
        known = wish.token == TOKEN and verified(key, unb64(wish.signature), statement)
        if not known:
            error = EnrollRefused("the token is not one of ours")
            return json_response(ErrorReply(error=error.body()), 403)
        return json_response(
            EnrollReply(
                agent_id=public_id(key), issuer_keys=self.issuer_keys, server_time=time.time()
            )
        )


def issuer_key(
    key: Ed25519PrivateKey, kid: str, *, signed_by: tuple[Ed25519PrivateKey, str] | None = None
) -> IssuerKey:
    """`key` as control tells of it, introduced by the key before it where one is given."""
    x = public_bytes(key)
    if signed_by is None:
        return IssuerKey(kid=kid, x=b64(x))
    previous, prev_kid = signed_by
    signature = b64(previous.sign(issuer_statement(kid, x)))
    return IssuerKey(kid=kid, x=b64(x), prev_kid=prev_kid, sig=signature)


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body.model_dump_json(), content_type="application/json")
