"""How a command begins: settings, log, client; and what is left to it is its own work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aegis_client.cli.output import Output
from aegis_client.cli.running import run
from aegis_client.client import Client
from aegis_client.config import ClientConfig, load
from aegis_client.exit_codes import ExitCode
from aegis_client.log import configure_log


def with_client(out: Output, work: Callable[[Client], Awaitable[ExitCode | None]]) -> ExitCode:
    """Open the client from the settings, run `work` with it, return the exit code."""

    async def opened() -> ExitCode | None:
        async with Client.opened(load()) as client:
            return await work(client)

    return _run(out, opened)


def with_config(
    out: Output, work: Callable[[ClientConfig], Awaitable[ExitCode | None]]
) -> ExitCode:
    """As `with_client`, for commands that come before there is an account or a store."""

    async def opened() -> ExitCode | None:
        return await work(load())

    return _run(out, opened)


def _run(out: Output, opened: Callable[[], Awaitable[ExitCode | None]]) -> ExitCode:
    configure_log()

    async def awaited() -> ExitCode | None:
        return await opened()

    return run(out, awaited)
