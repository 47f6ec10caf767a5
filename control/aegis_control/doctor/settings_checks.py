"""The settings: valid, known, secret enough, and fitting together."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from aegis_control.config_sources import env_names
from aegis_control.doctor.check import Check, error, failed, ok, warning
from aegis_control.doctor.subject import Subject

SHORTEST_SECRET: Final = 8
GOOD_SECRET: Final = 20
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")

_SECRETS: Final = ("mcp_auth_secret", "agent_auth_secret", "turn_secret")


def config(subject: Subject) -> Check:
    if subject.refused is not None:
        return failed("config", subject.refused)
    return ok("config", "every setting is valid")


def config_files(subject: Subject) -> Check:
    assert subject.loaded is not None
    loaded = subject.loaded
    files = sorted({path for path in loaded.origins.values() if path.startswith("/")})
    for path in files:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        if Path(path).name == "secrets.env" and mode & 0o077:
            return error(
                "config_files",
                f"{path} can be read by others (mode {mode:o})",
                f"chmod 600 {path}, then replace the secrets in it: somebody may know them.",
            )
    if loaded.unknown:
        return warning(
            "config_files",
            f"no settings of control: {', '.join(loaded.unknown)}",
            "Correct the names; docs/control.md has them all.",
        )
    if loaded.unreadable:
        return warning(
            "config_files",
            f"this user may not read {', '.join(loaded.unreadable)}",
            "Run the doctor as root to have those settings checked too.",
        )
    return ok("config_files", ", ".join(files) or "the environment alone")


def secrets(subject: Subject) -> Iterator[Check]:
    """One check for each secret that is set."""
    names = env_names()
    for field in names:
        value = getattr(subject.config, field)
        if not isinstance(value, SecretStr) or not field.startswith(_SECRETS):
            continue
        name = f"secret {names[field]}"
        length = len(value.get_secret_value().strip())
        if length < SHORTEST_SECRET:
            yield error(
                name,
                f"{length} characters: soon guessed",
                "Use 32 random ones: openssl rand -hex 16",
            )
        elif length < GOOD_SECRET:
            yield warning(
                name, f"{length} characters", f"Use {GOOD_SECRET} or more: openssl rand -hex 16"
            )
        else:
            yield ok(name, f"{length} characters")


def origins(subject: Subject) -> Check:
    allowed = subject.config.allowed_origins
    open_to_all = [origin for origin in allowed if _is_plain(origin)]
    if open_to_all:
        return warning(
            "origins",
            f"plain http: {', '.join(open_to_all)}; who is between can change those pages",
            "Serve those pages by https, and write ALLOWED_ORIGINS with https://.",
        )
    return ok("origins", ", ".join(allowed) or "none: only control's own pages may call")


def trusted_proxies(subject: Subject) -> Check:
    proxies = subject.config.trusted_proxies
    everybody = [str(network) for network in proxies if network.prefixlen == 0]
    if everybody:
        return error(
            "trusted_proxies",
            f"{', '.join(everybody)}: everybody may say which address he has",
            "Name only the networks of your reverse proxies in AEGIS_TRUSTED_PROXIES.",
        )
    url = subject.config.public_base_url
    behind_proxy = (
        url is not None and url.startswith("https:") and subject.config.tls_cert_file is None
    )
    if behind_proxy and not proxies:
        return warning(
            "trusted_proxies",
            "a proxy serves TLS, and every caller seems to have its address",
            "Name the proxy's network in AEGIS_TRUSTED_PROXIES, such as 127.0.0.1/32.",
        )
    return ok("trusted_proxies", ", ".join(str(network) for network in proxies) or "none")


def relay_entry(subject: Subject) -> Check:
    urls = subject.config.turn_urls
    if not urls:
        return warning(
            "relay_entry",
            "there is no TURN server: peers behind strict NATs or firewalls will not meet",
            "Run coturn and set AEGIS_TURN_URLS and AEGIS_TURN_SECRET; docs/networks.md shows how.",
        )
    if not any("tcp" in url or url.startswith("turns:") for url in urls):
        return warning(
            "relay_entry",
            f"{', '.join(urls)}: by UDP alone, which some networks block",
            "Add a URL such as turns:turn.example.org:443?transport=tcp to AEGIS_TURN_URLS.",
        )
    return ok("relay_entry", ", ".join(urls))


def public_base_url(subject: Subject) -> Check:
    url = subject.config.public_base_url
    if url is None:
        if subject.config.host_and_port[0] in LOCAL_HOSTS:
            return ok("public_base_url", "unset: control is for this machine alone")
        return warning(
            "public_base_url",
            "unset, and agents elsewhere can't know how to reach control",
            "Set CONTROL_PUBLIC_BASE_URL, such as https://control.example.org.",
        )
    if url.startswith("http:") and not _is_local(url):
        return warning(
            "public_base_url",
            f"{url}: keys travel unprotected",
            "Serve https: see docs/install.md, and set CONTROL_PUBLIC_BASE_URL to it.",
        )
    return ok("public_base_url", url)


def _is_plain(origin: str) -> bool:
    return origin.startswith("http:") and not _is_local(origin)


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in LOCAL_HOSTS
