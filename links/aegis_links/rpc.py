"""
JSON-RPC 2.0 over the `espctl` channel, both ways at once.

    -32700  rpc.parse_error        no JSON
    -32600  rpc.request_invalid    JSON, but no request
    -32601  method.unknown
    -32602  rpc.params_invalid
    -32603  internal.error         a defect, logged with the id that the error carries
    -32000  everything else        `data` holds the error body in every case
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NoReturn

import structlog
from aegis_protocol.channels import MAX_MESSAGE_BYTES
from aegis_protocol.errors import AegisError, ErrorBody, from_body
from aegis_protocol.failures.grant import MethodUnknown
from aegis_protocol.failures.link import (
    LinkClosed,
    MessageTooLarge,
    RpcBusy,
    RpcParamsInvalid,
    RpcParseError,
    RpcRequestInvalid,
    RpcResultTooLarge,
    RpcTimedOut,
)
from pydantic import ValidationError

from aegis_links.channel import Channel
from aegis_links.tasks import TaskOwner

MAX_IN_FLIGHT: Final = 32
MAX_NOTIFICATIONS_WAITING: Final = 256

_PARSE_ERROR: Final = -32700
_INTERNAL_ERROR: Final = -32603
_OURS: Final = -32000
_NUMBERS: Final[dict[type[AegisError], int]] = {
    RpcParseError: _PARSE_ERROR,
    RpcRequestInvalid: -32600,
    MethodUnknown: -32601,
    RpcParamsInvalid: -32602,
    AegisError: _INTERNAL_ERROR,
}
_SHOWN_FAULTS: Final = 5
_MAX_METHOD_CHARS: Final = 80
_log = structlog.get_logger("aegis_links.rpc")

Params = dict[str, Any]
Handler = Callable[[str, Params], Awaitable[Params]]
OnNotification = Callable[[str, Params], Awaitable[None]]
RequestId = str | int | float | None


class RpcPeer:
    """
    One end of the conversation. Made by `over`; it alone reads the channel.

    handler          called with method and parameters of each request, many at once
    on_notification  called for each notification, one after the other, in order
    """

    def __init__(
        self,
        channel: Channel,
        handler: Handler | None,
        on_notification: OnNotification | None,
        max_in_flight: int,
    ) -> None:
        self.closed = False
        self._channel = channel
        self._handler = handler
        self._on_notification = on_notification
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Params]] = {}
        self._max_in_flight = max_in_flight
        self._may_ask = asyncio.Semaphore(max_in_flight)
        self._heard: asyncio.Queue[tuple[str, Params]] = asyncio.Queue(MAX_NOTIFICATIONS_WAITING)
        self._life = TaskOwner()
        self._serving = TaskOwner()
        self._ended = asyncio.Event()
        self._refusal: AegisError = LinkClosed("The conversation is over.")

    @classmethod
    @asynccontextmanager
    async def over(
        cls,
        channel: Channel,
        *,
        handler: Handler | None = None,
        on_notification: OnNotification | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> AsyncIterator[RpcPeer]:
        """
        Talk over `channel` until the body ends; what is under way then is canceled.

        A handler answers by returning a JSON object or by raising: an AegisError reaches the
        peer as its own class, a pydantic ValidationError as RpcParamsInvalid, and anything else
        is a defect, which is logged here and is `internal.error` there. The link lives on.
        """
        peer = cls(channel, handler, on_notification, max_in_flight)
        peer._life.start(peer._read(), "rpc reader")
        if on_notification is not None:
            peer._life.start(peer._tell(on_notification), "rpc notifications")
        try:
            yield peer
        finally:
            peer._end(LinkClosed("The conversation is over."))
            await peer._serving.cancel()
            await peer._life.cancel()

    async def request(self, method: str, params: Params, *, deadline_s: float = 60.0) -> Params:
        """
        Return the peer's result.

        Raises what the peer's handler raised, RpcTimedOut at the deadline, MessageTooLarge, or
        the error that the link failed with (LinkClosed where it was closed on purpose).
        """
        try:
            async with asyncio.timeout(deadline_s), self._may_ask:
                return await self._ask(method, params)
        except TimeoutError as exc:
            raise RpcTimedOut(f"No answer to {method} in {deadline_s:g} s.", method=method) from exc

    async def notify(self, method: str, params: Params) -> None:
        """Tell the peer something. Returns when it stands in the send queue."""
        await self._channel.send(_encode({"jsonrpc": "2.0", "method": method, "params": params}))

    async def wait_closed(self) -> None:
        """Wait until the channel is closed or the link has ended."""
        await self._ended.wait()

    async def _ask(self, method: str, params: Params) -> Params:
        if self.closed:
            raise self._refusal
        number = next(self._numbers)
        answer: asyncio.Future[Params] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            await self._channel.send(
                _encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            )
            return await answer
        finally:
            del self._asked[number]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # fetched, should the deadline have come first

    # Reading.

    async def _read(self) -> None:
        refusal: AegisError = LinkClosed("The peer closed the connection.")
        try:
            async for message in self._channel:
                await self._take(message)
        except AegisError as exc:
            refusal = exc
        finally:
            self._end(refusal)

    def _end(self, refusal: AegisError) -> None:
        if self.closed:
            return
        self.closed = True
        self._refusal = refusal
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(refusal)
        self._serving.abandon()
        self._ended.set()

    async def _take(self, message: bytes | str) -> None:
        try:
            frame = _decode(message)
        except RpcParseError as exc:
            await self._refuse(None, exc)
            return
        if not isinstance(frame, dict) or frame.get("jsonrpc") != "2.0":
            await self._refuse(None, RpcRequestInvalid("This is no JSON-RPC 2.0 object."))
        elif "method" in frame:
            await self._take_call(frame)
        else:
            self._take_answer(frame)

    async def _take_call(self, frame: dict[str, Any]) -> None:
        number, method, params = frame.get("id"), frame["method"], frame.get("params", {})
        named = isinstance(method, str) and 0 < len(method) <= _MAX_METHOD_CHARS
        if not named or not isinstance(number, str | int | float | None):
            await self._refuse(
                None, RpcRequestInvalid("`id` or `method` is not what it should be.")
            )
        elif "id" not in frame:
            # A notification has no answer, a wrong one included (JSON-RPC 2.0, section 4.1).
            if method != "ping" and self._on_notification and isinstance(params, dict):
                await self._heard.put((method, params))
        elif not isinstance(params, dict):
            await self._refuse(number, RpcParamsInvalid("`params` is an object."))
        elif len(self._serving) >= self._max_in_flight:
            await self._refuse(
                number, RpcBusy(f"{self._max_in_flight} requests are under way already.")
            )
        else:
            self._serving.start(self._serve(number, method, params), f"rpc {method}")

    def _take_answer(self, frame: dict[str, Any]) -> None:
        number = frame.get("id")
        answer = self._asked.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return  # nobody waits for it any more
        result = frame.get("result")
        if "error" in frame:
            answer.set_exception(_error_of(frame["error"]))
        elif isinstance(result, dict):
            answer.set_result(result)
        else:
            answer.set_exception(RpcRequestInvalid("The peer's result is no JSON object."))

    # Answering.

    async def _serve(self, number: RequestId, method: str, params: Params) -> None:
        try:
            answer = _encode(
                {"jsonrpc": "2.0", "id": number, "result": await self._call(method, params)}
            )
        except MessageTooLarge as exc:
            await self._refuse(
                number, RpcResultTooLarge(f"The result of {method} is too large.", **exc.facts)
            )
        except AegisError as exc:
            await self._refuse(number, exc)
        else:
            with suppress(AegisError):  # nobody is left to hear it
                await self._channel.send(answer)

    async def _call(self, method: str, params: Params) -> Params:
        if self._handler is None:
            raise MethodUnknown(f"There is no method {method}.", method=method)
        try:
            return await self._handler(method, params)
        except AegisError:
            raise
        except ValidationError as exc:
            _log.warning("rpc_params.refused", method=method, faults=_faults(exc))
            raise RpcParamsInvalid(
                f"The parameters of {method} are wrong: {_faults(exc)}."
            ) from exc
        except Exception as exc:  # noqa: BLE001 - a handler's defect must not end the link
            _raise_as_defect(exc, method)

    async def _refuse(self, number: RequestId, error: AegisError) -> None:
        body = error.body()
        code = _NUMBERS.get(type(error), _OURS)
        frame: dict[str, Any] = {"code": code, "message": body.message, "data": body.model_dump()}
        try:
            text = _encode({"jsonrpc": "2.0", "id": number, "error": frame})
        except MessageTooLarge:
            frame["data"] = body.model_copy(update={"facts": {}}).model_dump()
            text = _encode({"jsonrpc": "2.0", "id": number, "error": frame})
        with suppress(AegisError):
            await self._channel.send(text)

    async def _tell(self, on_notification: OnNotification) -> None:
        while True:
            method, params = await self._heard.get()
            try:
                await on_notification(method, params)
            except Exception:  # noqa: BLE001 - nor must the defect of one that listens
                _log.exception("rpc_notification.failed", method=method)


def _raise_as_defect(exc: Exception, method: str) -> NoReturn:
    error_id = secrets.token_hex(4)
    _log.error("rpc_handler.failed", method=method, error_id=error_id, exc_info=exc)
    raise AegisError(f"A defect met {method} (error {error_id}).", error_id=error_id) from exc


def _encode(frame: dict[str, Any]) -> str:
    text = json.dumps(frame, separators=(",", ":"), allow_nan=False)  # ASCII: a char is a byte
    if len(text) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"A message on espctl would have {len(text)} bytes.", size_bytes=len(text)
        )
    return text


def _decode(message: bytes | str) -> object:
    try:
        return json.loads(message, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise RpcParseError("The message is no JSON.") from exc


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _error_of(error: object) -> AegisError:
    data = error.get("data") if isinstance(error, dict) else None
    try:
        return from_body(ErrorBody.model_validate(data))
    except ValidationError:
        number = error.get("code") if isinstance(error, dict) else None
        return RpcRequestInvalid("The peer refused the request without a body.", number=str(number))


def _faults(exc: ValidationError) -> str:
    """Name the fields; what was in them may be a secret."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'params'}: {fault['msg']}"
        for fault in exc.errors(include_input=False, include_context=False, include_url=False)
    ]
    return "; ".join(faults[:_SHOWN_FAULTS])
