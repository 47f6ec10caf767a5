"""The agent's way to control: one aiohttp session with the trust that the settings ask for."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import aiohttp

from aegis_agent.config import ConfigInvalid

_REQUEST_S: Final = 20.0
"""Less than what a watchdog waits."""


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """The system's roots, and those of `ca_file` added to them."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigInvalid(f"AEGIS_CA_FILE: {ca_file} can't be used: {exc}") from exc
    return context


def control_session(trusted: ssl.SSLContext, *, connect_timeout_s: float) -> aiohttp.ClientSession:
    """A session whose requests end within 20 s; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted),
        timeout=aiohttp.ClientTimeout(total=_REQUEST_S, connect=connect_timeout_s),
        trust_env=True,
    )
