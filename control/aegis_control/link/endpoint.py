"""`GET /agents/link`: one agent's WebSocket, from challenge to close."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.control_link import (
    TO_CONTROL,
    Challenge,
    Hello,
    Refused,
    ToControl,
    Welcome,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.events import Closed, State
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import (
    BadRequest,
    LinkRefused,
    OriginRefused,
    RateLimited,
    Unavailable,
)
from aiohttp import WSMsgType, web
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from aegis_control.acting import acting
from aegis_control.bus import tell
from aegis_control.config import Network
from aegis_control.fleet_news import tell_agents, tell_boards
from aegis_control.http.auth import remote_address
from aegis_control.http.desk import keep
from aegis_control.issuer import Issuer
from aegis_control.jobs import Jobs
from aegis_control.link.clones import watch
from aegis_control.link.frames import Frames
from aegis_control.link.greeting import authenticate, begin, settle
from aegis_control.link.link import Link
from aegis_control.link.pulse import Pulse
from aegis_control.link.registry import Links
from aegis_control.link.socket import CLOSE_S, LinkSocket
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.presence import Presence
from aegis_control.rate_limits import RateLimits, network_of
from aegis_control.standing import order_frame, same_order, standing
from aegis_control.store import agent_links, agents, clock, jobs, revocations
from aegis_control.store.agents import AgentRecord
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE

log = get_logger("link")

_MAX_GREETING: Final = 128
_MAX_GREETING_EACH: Final = 64
"""How many sockets may be between challenge and hello at once, in all and of one address."""


class LinkEndpoint:
    """
    proxies    networks whose forwarded addresses count
    on_linked  called with an agent's id once it has its link: it may have news to hear
    base_url   what agents must call this control
    pulse      says how long a link may be silent, and ends it then
    on_up      awaited with the agent's id when its link is up
    greet_s    the time from challenge to hello
    """

    def __init__(
        self,
        database: Database,
        issuer: Issuer,
        ledger: Jobs,
        links: Links,
        metrics: Metrics,
        rates: RateLimits,
        presence: Presence,
        *,
        proxies: Sequence[Network],
        on_linked: Callable[[str], None],
        base_url: str,
        ice_urls: tuple[str, ...],
        pulse: Pulse,
        greet_s: float,
        on_up: Callable[[str], Awaitable[None]],
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._ledger = ledger
        self._links = links
        self._metrics = metrics
        self._rates = rates
        self._presence = presence
        self._proxies = proxies
        self._frames = Frames(ledger, links)
        self._on_linked = on_linked
        self._base_url = base_url
        self._ice_urls = ice_urls
        self._pulse = pulse
        self._greet_s = greet_s
        self._on_up = on_up
        self._greeting: Counter[str] = Counter()
        self._closing = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one link until it ends. OriginRefused for a browser."""
        if "Origin" in request.headers:
            raise OriginRefused(
                "agents are no browsers", remedy="Link up with aegis-agent, not from a page."
            )
        if self._closing.is_set():
            raise Unavailable("control is stopping")
        address = remote_address(request, self._proxies)
        self._rates.before_link(address)
        caller = network_of(address)
        if self._greeting.total() >= _MAX_GREETING or self._greeting[caller] >= _MAX_GREETING_EACH:
            raise RateLimited("too many links are being opened", retry_after_s=1)
        socket = LinkSocket()
        await socket.prepare(request)
        try:
            link = await self._greet(socket, request)
        except AegisError as exc:
            await self._refuse(socket, exc, request)
            return socket
        except DBAPIError as exc:
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
            await self._refuse(socket, Unavailable("the store does not answer"), request)
            return socket
        if link is not None:
            with acting(link.agent_id):
                try:
                    await self._live(socket, link)
                finally:
                    await self._ended(link)
        return socket

    def close(self) -> None:
        """Close every link; control is going down."""
        self._closing.set()
        for link in self._links.own().values():
            link.close(Unavailable("control is stopping"), cause="stopping")

    async def _greet(self, socket: LinkSocket, request: web.Request) -> Link | None:
        """Exchange challenge, hello and welcome; None when the agent left in between."""
        nonce = secrets.token_urlsafe(32)
        caller = network_of(remote_address(request, self._proxies))
        self._greeting[caller] += 1
        try:
            async with asyncio.timeout(self._greet_s):
                challenge = Challenge(nonce=nonce, base_url=self._base_url)
                await socket.send_str(challenge.model_dump_json())
                hello = await self._receive(socket)
        except TimeoutError as exc:
            raise BadRequest("no hello within the time for it") from exc
        except ConnectionError:
            return None
        finally:
            self._greeting[caller] -= 1
            if not self._greeting[caller]:
                del self._greeting[caller]
        if hello is None:
            return None
        if not isinstance(hello, Hello):
            raise BadRequest("a link begins with hello", frame=hello.type)
        known = await authenticate(self._database, hello, nonce=nonce, base_url=self._base_url)
        address = remote_address(request, self._proxies)
        with acting(known.id, address):
            await watch(self._ledger, known, hello, address=address)
        link: Link | None = None
        superseded = self._links.supersede(known.id)
        try:
            with self._links.arriving(known.id):
                link = await self._welcome(socket, request, known, hello, superseded=superseded)
        finally:
            if link is None:
                await self._tell_gone(known.id, known.name, epoch=None)
        return link

    async def _welcome(
        self,
        socket: LinkSocket,
        request: web.Request,
        known: AgentRecord,
        hello: Hello,
        *,
        superseded: bool,
    ) -> Link | None:
        begun = await begin(self._database, known, hello)
        record, epoch = begun.record, begun.epoch
        alone = begun.alone and not superseded
        found = await settle(
            self._ledger,
            record.id,
            hello.jobs,
            waited_for=lambda job_id: alone and self._presence.waits(job_id),
        )
        async with self._database.read() as conn:
            revoked, through = await revocations.since(conn, record.id, hello.revoked_through)
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            server_time=time.time(),
            issuer_keys=self._issuer.keys(),
            ping_secs=self._pulse.ping_s,
            silence_secs=self._pulse.silence_s,
            over_jobs=found.over,
            standing=standing(record, now_s=time.time()),
            revocations=revoked,
            revoked_through=through,
            ice_urls=self._ice_urls,
        )
        if request.transport is None:  # it is closed
            return None
        link = Link(socket, request.transport, hello, name=record.name, epoch=epoch)
        try:
            await socket.send_str(welcome.model_dump_json())
        except ConnectionError:
            return None
        link.begin(ping_within_s=self._pulse.ping_s)
        keep(request)
        self._rates.link_proven(remote_address(request, self._proxies))
        self._links.add(link)
        try:
            await self._tell_news(link, record)
            await self._on_up(link.agent_id)
        except BaseException:
            self._links.remove(link)
            raise
        self._database.bus.deliver([("frame", link.agent_id)])  # what waited for this link
        log.info("agent.connected", agent_id=link.agent_id, name=link.name, epoch=epoch)
        return link

    async def _tell_news(self, link: Link, told: AgentRecord) -> None:
        """Tell what was ordered while the welcome, which says `told`, was on its way."""
        self._on_linked(link.agent_id)
        async with self._database.read() as conn:
            now = await agents.get(conn, link.agent_id)
        if now is not None and not same_order(now, told):
            link.send(order_frame(now, now_s=time.time()))

    async def _live(self, socket: LinkSocket, link: Link) -> None:
        try:
            await self._tell_back(link)
            link.listen()
            await self._read(socket, link)
        except DBAPIError as exc:  # the agent links up again, and says all of it again
            link.end_cause = "store"
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400

    async def _read(self, socket: LinkSocket, link: Link) -> None:
        try:
            while (frame := await self._receive(socket)) is not None:
                if not link.ending:
                    with link.busy():
                        await self._frames.take(link, frame)
        except AegisError as exc:
            link.end_cause = "protocol"
            log.warning("link.broken", agent_id=link.agent_id, code=exc.code, detail=exc.message)
            if not socket.closed:
                with suppress(ConnectionError):  # it is gone already
                    await socket.send_str(Refused(error=exc.body()).model_dump_json())

    async def _ended(self, link: Link) -> None:
        self._metrics.links_ended.labels(cause=link.end_cause).inc()
        current = self._links.remove(link)
        log.info(
            "agent.disconnected",
            agent_id=link.agent_id,
            name=link.name,
            epoch=link.epoch,
            cause=link.end_cause,
        )
        if not current or self._closing.is_set():
            return
        try:
            await self._tell_gone(
                link.agent_id, link.name, epoch=link.epoch, heard_at=link.heard_at
            )
        except DBAPIError as exc:
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400

    async def _tell_back(self, link: Link) -> None:
        """Tell the clients of the agent's jobs that it has a link."""
        async with self._ledger.change() as change:
            for job in await jobs.in_states(change.conn, LIVE, agent_id=link.agent_id):
                await change.tell(job.id, State(job_id=job.id, state=job.state))
            await tell_agents(change.conn, [link.agent_id], now_s=change.now_s)
            await tell_boards(change.conn, link.agent_id, now_s=change.now_s)

    async def _tell_gone(
        self, agent_id: str, name: str, *, epoch: int | None, heard_at: float | None = None
    ) -> None:
        """
        Keep that our link (of that epoch) ended, and tell the clients of the agent's jobs.

        heard_at  when the agent was last heard (unix seconds)

        Nothing when the agent has a newer one elsewhere.
        """
        gone = AgentGone(f"the agent {name} lost its link to control", agent_id=agent_id)
        replica_id = self._database.replica_id
        async with self._ledger.change() as change:
            now_s = await clock.now_s(change.conn)
            if not await agent_links.end(
                change.conn, agent_id, replica_id, epoch=epoch, now_s=now_s
            ):
                return
            if heard_at is not None:
                await agents.seen(change.conn, {agent_id: heard_at})
            await tell(change.conn, "link", agent_id)
            await tell_agents(change.conn, [agent_id], now_s=change.now_s)
            for job in await jobs.in_states(change.conn, LIVE, agent_id=agent_id):
                await change.tell(job.id, Closed(job_id=job.id, error=gone.body()))

    async def _receive(self, socket: LinkSocket) -> ToControl | None:
        """The next frame that this version knows; None when the socket is closed."""
        while True:
            message = await socket.receive()
            match message.type:
                case WSMsgType.TEXT:
                    try:
                        return TO_CONTROL.validate_json(message.data)
                    except ValidationError as exc:
                        first = exc.errors(include_url=False, include_input=False)[0]
                        if first["type"] == "union_tag_invalid":
                            log.info("link.frame_unknown", detail=first["msg"][:200])
                            continue
                        field = ".".join(str(part) for part in first["loc"])
                        raise BadRequest(f"a frame is wrong: {field}: {first['msg']}") from exc
                case WSMsgType.BINARY:
                    raise BadRequest("a binary frame has no meaning here")
                case _:
                    return None

    async def _refuse(self, socket: LinkSocket, error: AegisError, request: web.Request) -> None:
        address = remote_address(request, self._proxies)
        if isinstance(error, LinkRefused | BadRequest):
            self._rates.link_failed(address)
        log.warning(
            "link.refused",
            code=error.code,
            detail=error.message,
            remote=address,
            **error.facts,
        )
        try:
            async with asyncio.timeout(CLOSE_S):
                await socket.send_str(Refused(error=error.body()).model_dump_json())
                await socket.close()
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
