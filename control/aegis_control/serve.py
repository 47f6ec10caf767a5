"""
`aegis-control serve`: opens everything in order, says where it is, and closes it all again.

SIGHUP: the policy file is read again. SIGTERM or SIGINT: health turns to draining, event streams
and links end, then the process; a second one ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aegis_protocol import __version__
from aegis_protocol.actions import Role
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import KeyWrong
from aiohttp import web

from aegis_control.config import ConfigInvalid, ControlConfig
from aegis_control.config_sources import default_policy_file
from aegis_control.control import Control, running
from aegis_control.http import desk
from aegis_control.http.app import make_app
from aegis_control.http.connections import Connections
from aegis_control.http.routes import LOCAL_ROUTES, ROUTES
from aegis_control.identity import LOCAL, Identity
from aegis_control.issuer import Issuer
from aegis_control.local_socket import listening, peer_is_trusted
from aegis_control.log import get_logger
from aegis_control.policy.in_force import PolicyInForce
from aegis_control.sealing import Seal
from aegis_control.secret_files import read_or_make_secret, write_secret
from aegis_control.service_notify import notify
from aegis_control.shared_secrets import agree
from aegis_control.state_dir import StateDir
from aegis_control.store.database import Database

log = get_logger("serve")

_COLLECT_AFTER: Final = (20_000, 20, 20)
"""New objects before the youngest generation is looked at; and how often the older ones are."""

_PEPPER_BYTES: Final = 32
_LOCAL_CONNECTIONS: Final = 128
_SPARE_FILES: Final = 128
"""For the store, the log, and what else is open beside connections."""


class ListenFailed(AegisError):
    code = "control.listen_failed"
    remedy = "Choose another address with --listen, or end what has this one."


@dataclass(frozen=True)
class Served:
    """A control that listens. operator_key: the file of the first one, if it is new."""

    control: Control
    base_url: str
    port: int
    socket_path: Path
    operator_key: Path | None


@asynccontextmanager
async def serving(config: ControlConfig) -> AsyncIterator[Served]:
    """
    Serve until the block ends.

    Raises StateUnusable, StateBusy, StoreUnusable, ListenFailed, ConfigInvalid, PolicyInvalid.
    """
    state = StateDir(config.state_dir)
    state.make()
    async with AsyncExitStack() as stack:
        stack.enter_context(state.held())
        tls = tls_of(config)
        sock = stack.enter_context(_bound(config))
        base_url = config.public_base_url or _own_url(sock, tls)
        policy = PolicyInForce(
            config.policy_file, required=config.policy_file != default_policy_file()
        )
        issuer = Issuer.open(state.issuer_key)
        pepper = read_or_make_secret(state.pepper, _PEPPER_BYTES)
        database = await stack.enter_async_context(Database.open(config.database))
        seal = Seal(config.seal_keys) if config.seal_keys else None
        pepper = await agree(database, seal, "pepper", pepper)
        issuer = Issuer.from_private(await agree(database, seal, "issuer", issuer.private()))
        _warn(config)
        control = await stack.enter_async_context(
            running(config, database, issuer, policy, pepper, base_url=base_url)
        )
        operator_key = await _first_key(control, state)
        local = stack.enter_context(listening(state.socket))
        public = _connections(control, config.max_connections)
        private = _connections(control, _LOCAL_CONNECTIONS)
        times = {"headers_s": config.connect_timeout_s, "stall_s": config.stall_timeout_s}
        admin = make_app(control, LOCAL_ROUTES, door=_local_operator)
        app = make_app(control, ROUTES)
        await stack.enter_async_context(desk.serving(app, sock, tls, connections=public, **times))
        await stack.enter_async_context(
            desk.serving(admin, local, None, connections=private, **times)
        )
        stack.callback(control.stop)
        yield Served(control, base_url, sock.getsockname()[1], state.socket, operator_key)


async def serve_until_signal(config: ControlConfig, *, announce: Callable[[Served], None]) -> None:
    """Serve until SIGTERM or SIGINT; then close within the drain time."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("control.killed", signal=number.name)
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with serving(config) as served:
            loop.add_signal_handler(signal.SIGHUP, served.control.policy.ask)
            _spare_the_collector()
            announce(served)
            log.info("control.started", base_url=served.base_url, version=__version__)
            notify("READY=1")
            await stop.wait()
            notify("STOPPING=1")
            log.info("control.stopping")
            served.control.stop()
            loop.call_later(config.drain_timeout_s, _exit_overdue)
        log.info("control.stopped")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _connections(control: Control, most: int) -> Connections:
    """The bounds of one socket: never more than there may be open files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES
    if files < most:
        log.info("connections.lowered", most=files, remedy="Raise the limit of open files.")
    return Connections(
        most=max(1, min(most, files)),
        most_each=control.config.max_connections_each,
        proxies=control.config.trusted_proxies,
        metrics=control.metrics,
    )


def _local_operator(request: web.Request) -> Identity:
    """Whoever comes by the state directory's socket, if it is root or our own user."""
    peer = None if request.transport is None else request.transport.get_extra_info("socket")
    if peer is None or not peer_is_trusted(peer):
        raise KeyWrong("this socket is for root and control's own user")
    return Identity(LOCAL, Role.OPERATOR)


async def _first_key(control: Control, state: StateDir) -> Path | None:
    """Make the first operator's key when there is no key at all; returns the file it is in."""
    async with control.database.alone("first-key"):  # replicas may start at the same moment
        if not await control.keyring.empty():
            return None
        made = await control.keyring.make_key(Role.OPERATOR, name="first operator")
    write_secret(state.operator_key, f"{made.key}\n".encode())
    log.info("key.made", key_id=made.id, role=str(made.role), file=str(state.operator_key))
    return state.operator_key


def _bound(config: ControlConfig) -> socket.socket:
    host, port = config.host_and_port
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = infos[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        raise ListenFailed(
            f"{config.listen} can't be listened on: {exc.strerror}", listen=config.listen
        ) from exc
    return sock


def _own_url(sock: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if tls is None else 'https'}://{shown}:{port}"


def tls_of(config: ControlConfig) -> ssl.SSLContext | None:
    """What HTTPS is served with, if it is; ConfigInvalid when the files can't be used."""
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(
            f"AEGIS_TLS_CERT_FILE, AEGIS_TLS_KEY_FILE: can't be used: {exc.strerror or exc}"
        ) from exc
    return context


def _warn(config: ControlConfig) -> None:
    """What works but should not stay so."""
    for name, secrets in (
        ("MCP_AUTH_SECRET", config.mcp_secrets),
        ("AGENT_AUTH_SECRET", config.agent_secrets),
    ):
        if any(len(secret) < 20 for secret in secrets):
            log.warning("config.short", setting=name, remedy="Use 20 characters or more.")
    if config.public_base_url is None and config.host_and_port[0] in ("0.0.0.0", "::"):  # noqa: S104
        log.warning(
            "config.base_url_unset",
            setting="CONTROL_PUBLIC_BASE_URL",
            remedy="Set it to the URL by which agents and clients reach this control.",
        )
    for path in (config.tls_key_file,):
        if path is not None and stat.S_IMODE(path.stat().st_mode) & 0o077:
            log.warning("config.file_open_to_others", file=str(path), remedy="chmod 600 it.")


def _spare_the_collector() -> None:
    """
    What lives by now lives to the end, and requests leave no cycles behind: looking for them as
    often as Python does by itself takes a tenth of the time of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _exit_overdue() -> None:
    log.error("control.drain_overran")
    os._exit(1)
