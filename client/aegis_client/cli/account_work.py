"""What login, logout and whoami do."""

from __future__ import annotations

import getpass
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from aegis_protocol.failures.http import KeyMissing

from aegis_client import accounts
from aegis_client.accounts import Account, KeptAccount
from aegis_client.cli.opened import with_client, with_config
from aegis_client.cli.output import Output
from aegis_client.client import Client
from aegis_client.config import ClientConfig, checked_key, checked_url
from aegis_client.control import ControlClient
from aegis_client.exit_codes import ExitCode
from aegis_client.failures import ConfigInvalid
from aegis_client.store import Store

_MAX_KEY_BYTES: Final = 4096


def login(url: str, *, key_stdin: bool, key_file: Path | None, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(config: ClientConfig) -> None:
        where = checked_url(url, allow_insecure=config.allow_insecure)
        key = _key(config, where, key_stdin=key_stdin, key_file=key_file)
        store = Store.open(config)
        async with ControlClient.connected(
            replace(config, url=where), Account(where, key, "the argument", "login")
        ) as control:
            me = await control.whoami()
        accounts.keep(
            store, KeptAccount(url=where, key=key, identity=me.identity, role=str(me.role))
        )
        out.result({"url": where, "identity": me.identity, "role": str(me.role)})
        out.line(f"logged in at {where} as {me.identity} ({me.role})")

    return with_config(out, work)


def logout(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        url = client.account.url
        was_there = accounts.forget(client.store, url)
        out.result({"url": url, "forgotten": was_there})
        out.line(f"the key for {url} is forgotten" if was_there else f"no key is kept for {url}")

    return with_client(out, work)


def whoami(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        me = await client.control.whoami()
        out.result({"url": client.account.url, **me.model_dump(mode="json")})
        rows = [
            ["control", f"{client.account.url} (from {client.account.url_source})"],
            ["identity", f"{me.identity} (key from {client.account.key_source})"],
            ["role", str(me.role)],
            ["actions", " ".join(sorted(me.actions))],
            *([f"only {kind}", " ".join(values)] for kind, values in me.limits.items()),
        ]
        if me.expires_at is not None:
            rows.append(["expires", time.strftime("%Y-%m-%d %H:%M", time.localtime(me.expires_at))])
        out.table(["", ""], rows)

    return with_client(out, work)


def _key(config: ClientConfig, url: str, *, key_stdin: bool, key_file: Path | None) -> str:
    if key_stdin and key_file is not None:
        raise ConfigInvalid("--key-stdin and --key-file exclude each other")
    if key_file is not None:
        try:
            with key_file.open("rb") as file:
                return checked_key(_text(file.read(_MAX_KEY_BYTES)), str(key_file))
        except OSError as exc:
            raise ConfigInvalid(f"{key_file} can't be read: {exc.strerror}") from exc
    if key_stdin:
        return checked_key(_text(sys.stdin.buffer.read(_MAX_KEY_BYTES)), "standard input")
    if config.key is not None:
        return config.key
    if sys.stdin.isatty():
        return checked_key(getpass.getpass(f"API key for {url}: "), "the prompt")
    raise KeyMissing(
        "no key was given",
        remedy="Use --key-stdin or --key-file FILE, or set MCP_AUTH_SECRET.",
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
