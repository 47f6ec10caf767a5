"""The aiohttp application: routes from the table, and what is true of every request."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import structlog
from aegis_protocol.errors import AegisError, ErrorBody, ErrorReply
from aegis_protocol.failures.grant import GrantInvalid
from aegis_protocol.failures.http import (
    BadRequest,
    EnrollRefused,
    KeyWrong,
    MethodNotAllowed,
    NotFound,
    OriginRefused,
    RateLimited,
    RequestTooSlow,
    TicketWrong,
    TooLarge,
    Unavailable,
)
from aegis_protocol.ids import new_id
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import DBAPIError

from aegis_control.acting import acting
from aegis_control.control import Control
from aegis_control.http.auth import presented_key, remote_address
from aegis_control.http.cors import Origins
from aegis_control.http.denials import Denials
from aegis_control.http.desk import used
from aegis_control.http.route import Call, Reply, Route
from aegis_control.http.statuses import RETRY_AFTER_S, status_of
from aegis_control.http.tickets import ticket_holder
from aegis_control.identity import Identity
from aegis_control.keyring import UNKNOWN
from aegis_control.log import get_logger
from aegis_control.slow import doing

log = get_logger("http")

MAX_BODY_BYTES: Final = 65_536
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""The one way to write it in JSON. PostgreSQL keeps no text with it."""
_BODY_S: Final = 20.0
"""How long a body may take to come."""

_ROUTE: Final = web.RequestKey("aegis_route", str)
_STREAMS: Final = web.RequestKey("aegis_streams", bool)
_REQUEST_ID: Final = web.RequestKey("aegis_request_id", str)
_ADDRESS: Final = web.RequestKey("aegis_address", str)

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]
Door = Callable[[web.Request], Identity]


def make_app(
    control: Control, routes: Sequence[Route], *, door: Door | None = None
) -> web.Application:
    """
    An application that serves `routes`.

    door  tells who asks where no key is needed (the socket in the state directory)
    """
    origins = Origins(control.config.allowed_origins, control.base_url)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_around(control, origins)])
    denials = Denials(control.database)
    for route in routes:
        app.router.add_route(route.method, route.path, _served(control, denials, route, door))

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        origins.mark(request, response)
        response.headers["X-Request-Id"] = request.get(_REQUEST_ID, "")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers[hdrs.SERVER] = "aegis-control"

    app.on_response_prepare.append(mark)
    return app


def _served(control: Control, denials: Denials, route: Route, door: Door | None) -> Serve:
    async def serve(request: web.Request) -> web.StreamResponse:
        request[_ROUTE] = route.path
        request[_STREAMS] = route.streams
        if control.stopping.is_set() and not route.path.startswith("/health"):
            raise Unavailable("control is stopping")
        if route.streams:
            answer = await _answered(control, denials, route, request, door)
        else:
            try:
                with doing(f"{route.method} {route.path}"):
                    async with asyncio.timeout(control.config.request_timeout_s):
                        answer = await _answered(control, denials, route, request, door)
                        if route.lasting:
                            await control.database.on_disk()
            except TimeoutError as exc:
                raise Unavailable("the request took too long") from exc
        return answer if isinstance(answer, web.StreamResponse) else _rendered(answer)

    return serve


async def _answered(
    control: Control, denials: Denials, route: Route, request: web.Request, door: Door | None
) -> Reply | web.StreamResponse:
    call = await _call(control, denials, route, request, door)
    with acting(None if call.caller is None else call.caller.id, request[_ADDRESS] or None):
        return await route.endpoint(control, call)


async def _call(
    control: Control, denials: Denials, route: Route, request: web.Request, door: Door | None
) -> Call:
    identity = None if door is None else door(request)
    if door is None and (route.role is not None or route.proves):
        control.rates.before_secret(request[_ADDRESS])
    if identity is None and route.role is not None:
        ticket = request.query.get("ticket") if route.streams else None
        if ticket is None:
            identity = await control.keyring.identify(presented_key(request))
        else:
            identity = await ticket_holder(control, request, ticket)
        structlog.contextvars.bind_contextvars(identity=identity.id)
        control.rates.count_key(identity.id)
    if identity is not None:
        await denials.check(identity, route, request.path, request[_ADDRESS])
    body = None if route.takes is None else await _body(request, route.takes)
    return Call(request, identity, body)


async def _body(request: web.Request, model: type[BaseModel]) -> BaseModel:
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadRequest("Content-Encoding: send it as it is", field="Content-Encoding")
    try:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
        async with asyncio.timeout(_BODY_S):
            content = await request.read()
    except TimeoutError as exc:
        raise RequestTooSlow(f"the body did not come within {_BODY_S:g} s") from exc
    except (web.RequestPayloadError, HttpProcessingError) as exc:
        raise BadRequest("the body can't be read: its chunks or its length are wrong") from exc
    except ConnectionError as exc:
        raise BadRequest("the connection was closed before the body was whole") from exc
    if _NUL.search(content):
        raise BadRequest("the character NUL has no place in any text", field="")
    try:
        return model.model_validate_json(content)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{field}: {what}" if field else what, field=field) from exc


def _rendered(reply: Reply) -> web.Response:
    if reply.body is None:
        return web.Response(status=reply.status, headers=reply.headers)
    return web.Response(
        status=reply.status,
        headers={hdrs.CACHE_CONTROL: "no-store", **reply.headers},
        text=reply.body.model_dump_json(),
        content_type="application/json",
    )


def _around(control: Control, origins: Origins) -> Callable[..., Awaitable[web.StreamResponse]]:
    @web.middleware
    async def around(request: web.Request, handler: Serve) -> web.StreamResponse:
        """Give the request an id, check its origin, turn every error into an answer, count it."""
        used(request)
        request_id = new_id()
        request[_REQUEST_ID] = request_id
        request[_ADDRESS] = remote_address(request, control.config.trusted_proxies)
        began = time.monotonic()
        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            try:
                answer = await _guarded(control, origins, request, handler)
            finally:
                structlog.contextvars.unbind_contextvars("identity")
            route = request.get(_ROUTE, "none")
            if not request.get(_STREAMS, False):
                with doing(f"{_method(request)} {route}"):
                    control.slow.note("request", time.monotonic() - began)
            control.metrics.requests.labels(
                route=route, method=_method(request), status=answer.status
            ).inc()
            log.debug(
                "request.answered",
                method=request.method,
                route=route,
                status=answer.status,
                took_ms=round((time.monotonic() - began) * 1000, 1),
            )
        finally:
            structlog.contextvars.reset_contextvars(**bound)
        return answer

    return around


async def _guarded(
    control: Control, origins: Origins, request: web.Request, serve: Serve
) -> web.StreamResponse:
    try:
        if request.remote and request.path not in _UNCOUNTED:
            control.rates.admit(request[_ADDRESS])
        _check_address(request)
        if request.method == hdrs.METH_OPTIONS:
            return origins.preflight(request)
        if request.path != "/agents/link":
            origins.check(request)
        return await serve(request)
    except web.HTTPException as exc:
        error = _translated(exc, request)
        if error is None:
            raise
    except AegisError as exc:
        error = exc
    except DBAPIError as exc:
        log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
        error = Unavailable("the store does not answer")
    except Exception:
        log.exception("request.crashed", method=request.method, path=request.path)
        request_id = request[_REQUEST_ID]
        return _error(
            ErrorBody(
                code=AegisError.code,
                message="control met an error of its own",
                remedy=AegisError.remedy,
                facts={"log_id": request_id},
            ),
            HTTPStatus.INTERNAL_SERVER_ERROR,
        )
    return _refused(control, request, error)


def _check_address(request: web.Request) -> None:
    if "\0" in request.path or any("\0" in f"{k}{v}" for k, v in request.query.items()):
        raise BadRequest("the character NUL has no place in an address")


def _refused(control: Control, request: web.Request, error: AegisError) -> web.Response:
    status = status_of(error.code)
    control.metrics.refusals.labels(code=error.code).inc()
    if _is_guess(error):
        control.rates.failed(request[_ADDRESS])
    noun = "origin" if error.code == OriginRefused.code else _NOUNS.get(request.get(_ROUTE, ""))
    if "scope" in error.facts and error.code == RateLimited.code:
        report = log.debug  # a flood must not fill the log: `rate.exceeded` says it once a minute
    else:
        report = log.warning if status in _SUSPICIOUS else log.info
    report(
        f"{noun or 'request'}.refused",
        code=error.code,
        detail=error.message,
        method=request.method,
        path=request.path,
        status=int(status),
        remote=request[_ADDRESS],
        facts=error.facts,
    )
    return _error(error.body(), status)


_UNCOUNTED: Final = frozenset({"/health", "/agents/link"})
"""A balancer that asks for health must not be refused; links have limits of their own."""

_SUSPICIOUS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

_NOUNS: Final = {
    "/grant/request": "grant",
    "/agents/enroll": "enroll",
    "/signaling/{job_id}/offer": "offer",
    "/signaling/{job_id}/candidate": "candidate",
}
"""What is refused at a route, for the log."""


def _is_guess(error: AegisError) -> bool:
    """Whether a secret came that is nobody's. One that was revoked or is over is no guess."""
    match error:
        case KeyWrong():
            return error.facts.get("reason") == UNKNOWN
        case EnrollRefused() | GrantInvalid() | TicketWrong():
            return True
        case _:
            return False


def _error(body: ErrorBody, status: HTTPStatus) -> web.Response:
    headers = {hdrs.CACHE_CONTROL: "no-store"}
    if status is HTTPStatus.UNAUTHORIZED:
        headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers[hdrs.RETRY_AFTER] = str(body.facts.get("retry_after_s", RETRY_AFTER_S))
    return web.Response(
        status=status,
        headers=headers,
        text=ErrorReply(error=body).model_dump_json(),
        content_type="application/json",
    )


def _translated(exc: web.HTTPException, request: web.Request) -> AegisError | None:
    """aiohttp's own refusals as ours; None for what is none (a redirect)."""
    match exc:
        case web.HTTPNotFound():
            return NotFound(f"there is nothing at {request.path[:200]}", path=request.path[:200])
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed(
                f"{request.method} has no meaning at {request.path[:200]}",
                allowed=sorted(exc.allowed_methods),
            )
        case web.HTTPRequestEntityTooLarge():
            return TooLarge(
                f"a request has at most {MAX_BODY_BYTES} bytes", limit_bytes=MAX_BODY_BYTES
            )
        case web.HTTPClientError():
            return BadRequest(exc.reason)
        case _:
            return None


def _method(request: web.Request) -> str:
    """The method, of a known set: a label must not grow without bound."""
    return request.method if request.method in hdrs.METH_ALL else "other"
