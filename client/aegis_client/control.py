"""Control's HTTP API as the client uses it: typed, with deadlines, retried where that is safe."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import aegis_protocol
import aegis_protocol.failures  # registers every class, so that errors come back as their own
import aiohttp
from aegis_protocol.errors import AegisError, ErrorReply, from_body
from aegis_protocol.failures.http import (
    ControlAnswerInvalid,
    ControlUnreachable,
    KeyWrong,
    RateLimited,
    RoleInsufficient,
    Unavailable,
)
from aegis_protocol.http_api.agents import AgentList
from aegis_protocol.http_api.boards import BoardList
from aegis_protocol.http_api.grants import GrantReply, GrantRequest, PendingReply
from aegis_protocol.http_api.health import Health
from aegis_protocol.http_api.jobs import Job, JobList
from aegis_protocol.http_api.keys import WhoAmI
from aegis_protocol.http_api.leases import Lease, LeaseList, LeaseRequest, RenewRequest
from aegis_protocol.http_api.signaling import OfferReply, OfferRequest
from aegis_protocol.model import Wire
from pydantic import ValidationError

from aegis_client.accounts import Account
from aegis_client.config import ClientConfig, is_local
from aegis_client.tls import trust_context

TRIES: Final = 3
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MAX_RETRY_AFTER_S: Final = 10.0
KEEPALIVE_S: Final = 4.0
"""Shorter than a lost peer takes to be noticed: the way back begins with a fresh connection."""
_BACKOFF_S: Final = (0.25, 1.0)

W = TypeVar("W", bound=Wire)


class ControlClient:
    """One control and one key. Every method raises AegisError and ends within its deadline."""

    def __init__(
        self, http: aiohttp.ClientSession, account: Account, trust: ssl.SSLContext
    ) -> None:
        self.trust = trust
        self._http = http
        self._account = account
        self.url = account.url

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, config: ClientConfig, account: Account
    ) -> AsyncIterator[ControlClient]:
        """Nothing is sent before the first request."""
        host = urlsplit(account.url).hostname or ""
        trust = trust_context(config)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=config.request_timeout_s, sock_connect=config.connect_timeout_s
            ),
            headers={"User-Agent": f"espctl/{aegis_protocol.__version__}"},
            # A proxy on the way to this very machine is never meant.
            trust_env=not is_local(host),
        ) as http:
            yield cls(http, account, trust)

    async def health(self) -> Health:
        """Needs no key."""
        # 503 too carries a Health: it says why.
        _, data = await self._exchange("GET", "/health", None, {}, also=503)
        return _parsed(Health, data)

    async def whoami(self) -> WhoAmI:
        return await self._call("GET", "/whoami", WhoAmI)

    async def agents(self) -> AgentList:
        return await self._call("GET", "/agents", AgentList)

    async def boards(self) -> BoardList:
        return await self._call("GET", "/boards", BoardList)

    async def jobs(self) -> JobList:
        return await self._call("GET", "/jobs", JobList)

    async def job(self, job_id: str) -> Job:
        return await self._call("GET", f"/jobs/{quote(job_id, safe='')}", Job)

    async def cancel_job(self, job_id: str) -> None:
        await self._retried("DELETE", f"/jobs/{quote(job_id, safe='')}", None, {})

    async def leases(self) -> LeaseList:
        return await self._call("GET", "/leases", LeaseList)

    async def lease(self, lease_id: str) -> Lease:
        return await self._call("GET", _lease(lease_id), Lease)

    async def take_lease(self, request: LeaseRequest) -> Lease:
        """Asked once: a repeat after a lost answer would find the board taken, by ourselves."""
        body = request.model_dump(mode="json", exclude_none=True)
        return _parsed(Lease, (await self._exchange("POST", "/leases", body, self._auth({})))[1])

    async def renew_lease(self, lease_id: str, *, for_secs: int) -> Lease:
        body = RenewRequest(for_secs=for_secs).model_dump(mode="json")
        return _parsed(
            Lease, (await self._retried("POST", f"{_lease(lease_id)}/renew", body, {}))[1]
        )

    async def release_lease(self, lease_id: str) -> Lease:
        return await self._call("DELETE", _lease(lease_id), Lease)

    async def request_grant(
        self, request: GrantRequest, *, idempotency_key: str | None = None
    ) -> GrantReply | PendingReply:
        """
        Ask for a job, or with its `job_id` for one more grant of it. idempotency_key: of a
        request for a new job, so that a repeat after a lost answer makes no second one.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = request.model_dump(mode="json", exclude_none=True)
        status, data = await self._retried("POST", "/grant/request", body, headers)
        return _parsed(PendingReply, data) if status == 202 else _parsed(GrantReply, data)

    async def offer(self, job_id: str, grant: str, sdp: str) -> OfferReply:
        """Send the offer. Repeating it is safe: the agent answers one `jti` once."""
        path = f"/signaling/{quote(job_id, safe='')}/offer"
        headers = {"Authorization": f"Bearer {grant}"}
        body = OfferRequest(sdp=sdp).model_dump(mode="json")
        return _parsed(OfferReply, (await self._retried("POST", path, body, headers))[1])

    @asynccontextmanager
    async def event_bytes(self, path: str, last_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """
        Open a stream of server-sent events and give its bytes as they come.

        Control says something every 30 s: a stream that is silent for 75 s is broken
        (ControlUnreachable).
        """
        headers = {"Accept": "text/event-stream"} | self._auth({})
        if last_id:
            headers["Last-Event-ID"] = last_id
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=75)
        try:
            async with self._http.get(
                self.url + path, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise _error(answer.status, await _bounded(answer), answer.headers)
                if answer.content_type != "text/event-stream":
                    raise ControlAnswerInvalid(f"{self.url}{path} is not a stream of events")
                yield answer.content.iter_any()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise self._unreachable(exc) from exc

    async def _call(self, method: str, path: str, model: type[W]) -> W:
        return _parsed(model, (await self._retried(method, path, None, {}))[1])

    async def _retried(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Exchange until it worked or TRIES are used up. Only for what is safe to repeat."""
        for left in range(TRIES - 1, -1, -1):
            try:
                return await self._exchange(method, path, body, self._auth(headers))
            except AegisError as exc:
                wait_s = exc.facts.get("retry_after_s")
                if not isinstance(wait_s, float):
                    wait_s = _BACKOFF_S[-1 if left == 1 else 0]
                if not exc.retryable or left == 0 or wait_s > MAX_RETRY_AFTER_S:
                    raise
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _exchange(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], *, also: int = 0
    ) -> tuple[int, bytes]:
        try:
            async with self._http.request(
                method, self.url + path, json=body, headers=headers, allow_redirects=False
            ) as answer:
                data = await _bounded(answer)
                if answer.status >= 300 and answer.status != also:
                    raise _error(answer.status, data, answer.headers)
                return answer.status, data
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise self._unreachable(exc) from exc

    def _auth(self, headers: Mapping[str, str]) -> dict[str, str]:
        if "Authorization" in headers:
            return dict(headers)
        return {"Authorization": f"Bearer {self._account.required_key()}", **headers}

    def _unreachable(self, exc: BaseException) -> ControlUnreachable:
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
            return ControlUnreachable(
                f"the certificate of {self.url} is not trusted: {exc}",
                remedy="For a private CA set AEGIS_CA_FILE to its certificate.",
                url=self.url,
            )
        if isinstance(exc, aiohttp.ClientSSLError):
            return ControlUnreachable(
                f"no TLS with {self.url}: {exc}",
                remedy="Check that the URL's scheme (https or http) is what control speaks.",
                url=self.url,
            )
        if isinstance(exc, TimeoutError):
            return ControlUnreachable(f"{self.url} did not answer in time", url=self.url)
        return ControlUnreachable(f"no connection to {self.url}: {_words(exc)}", url=self.url)


def _lease(lease_id: str) -> str:
    return f"/leases/{quote(lease_id, safe='')}"


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    data = b""
    async for piece in answer.content.iter_chunked(65_536):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise ControlAnswerInvalid(f"{answer.url.path}: the answer is too large")
    return data


def _parsed(model: type[W], data: bytes) -> W:
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise ControlAnswerInvalid(
            f"control's answer is no {model.__name__}: {exc.error_count()} fields are wrong"
        ) from exc


def _error(status: int, data: bytes, headers: Mapping[str, str]) -> AegisError:
    """The error that an answer stands for: of its body, or by its status where it has none."""
    try:
        error = from_body(ErrorReply.model_validate_json(data).error)
    except ValidationError:
        error = _by_status(status, headers)
    retry_after = headers.get("Retry-After", "")
    if retry_after.isdigit():
        error.facts["retry_after_s"] = float(retry_after)
    return error


def _by_status(status: int, headers: Mapping[str, str]) -> AegisError:
    if 300 <= status < 400:
        return ControlAnswerInvalid(
            f"the server sends us on to {headers.get('Location', 'another place')!r}",
            remedy="Log in with the URL that control really has.",
        )
    if status == 401:
        return KeyWrong("the server refused the key")
    if status == 403:
        return RoleInsufficient("the server refused the request")
    if status == 429:
        return RateLimited("the server has too many requests")
    if status in (502, 503, 504):
        return Unavailable(f"the server in front of control answered {status}")
    return ControlAnswerInvalid(f"the server answered {status} without a word of ours")


def _words(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
