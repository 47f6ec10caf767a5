"""
The certificate that others meet: whole, trusted, of the right name, and not about to end.

It is judged as a client judges it, by a handshake: with control's own files in memory, or with
whatever serves CONTROL_PUBLIC_BASE_URL.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from aegis_control.doctor.check import Check, error, ok, skipped, warning
from aegis_control.doctor.subject import Subject
from aegis_control.trust import trust

NAMES: Final = ("tls_certificate", "tls_expiry", "tls_names")

_SOON_S: Final = 14 * 86_400
_LIMIT_S: Final = 10.0
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
"""X509_V_ERR_… of OpenSSL."""


@dataclass(frozen=True)
class Presented:
    """
    certificates  as presented, the server's own first
    distrust      why a client would not trust the chain; None if it would
    other_name    why a client would say that it is somebody else's
    """

    certificates: tuple[x509.Certificate, ...]
    distrust: str | None
    other_name: str | None


async def tls(subject: Subject) -> tuple[Check, ...]:
    url = subject.public_url
    parts = urlsplit(url or "")
    files = None
    if subject.loaded is not None and subject.url is None:
        config = subject.config
        if config.tls_cert_file is not None and config.tls_key_file is not None:
            files = (config.tls_cert_file, config.tls_key_file)
    if files is None and parts.scheme != "https":
        return tuple(skipped(name, "nothing is served by https") for name in NAMES)
    host = parts.hostname or "localhost"
    try:
        if files is not None:
            presented = _of_files(*files, host)
        else:
            presented = await _of_server(host, parts.port or 443)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        return (
            error(
                "tls_certificate",
                f"it can't be had: {why or 'no answer in time'}",
                "AEGIS_TLS_CERT_FILE and AEGIS_TLS_KEY_FILE must be a PEM chain and its key,"
                " readable for control; or mend the proxy that serves CONTROL_PUBLIC_BASE_URL.",
            ),
            *(skipped(name, "there is no certificate to look at") for name in NAMES[1:]),
        )
    return tuple(_judged(presented, host, subject.machine.now_s()))


def _judged(presented: Presented, host: str, now_s: float) -> Iterator[Check]:
    if presented.distrust is not None:
        yield error(
            "tls_certificate",
            f"clients won't trust it: {presented.distrust}",
            "Serve the whole chain (fullchain.pem). A private CA's root must be known where clients"
            " run: AEGIS_CA_FILE, here too.",
        )
    else:
        yield ok("tls_certificate", f"the chain of {len(presented.certificates)} is trusted")
    ends = min(one.not_valid_after_utc for one in presented.certificates)
    begins = max(one.not_valid_before_utc for one in presented.certificates)
    now = datetime.fromtimestamp(now_s, UTC)
    left_s = (ends - now).total_seconds()
    renew = "Renew it, and restart what serves it."
    if begins > now:
        yield error("tls_expiry", f"valid only from {begins:%Y-%m-%d %H:%M} UTC", renew)
    elif left_s <= 0:
        yield error("tls_expiry", f"it expired on {ends:%Y-%m-%d %H:%M} UTC", renew)
    elif left_s < _SOON_S:
        yield warning("tls_expiry", f"it expires on {ends:%Y-%m-%d %H:%M} UTC", renew)
    else:
        yield ok("tls_expiry", f"until {ends:%Y-%m-%d}")
    if presented.other_name is not None:
        yield error(
            "tls_names",
            f"it is not for {host}: {presented.other_name}",
            "Have one made with the host of CONTROL_PUBLIC_BASE_URL among its names.",
        )
    else:
        yield ok("tls_names", f"it is for {host}")


def _of_files(certificate: Path, key: Path, host: str) -> Presented:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    found = tuple(x509.load_pem_x509_certificates(certificate.read_bytes()))
    problems = [_in_memory(server, context, host) for context in _clients()]
    return _presented(found, *problems)


async def _of_server(host: str, port: int) -> Presented:
    async with asyncio.timeout(_LIMIT_S):
        problems = [await _over_network(context, host, port) for context in _clients()]
        blind = ssl.create_default_context()
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE  # only to look at it: nothing is sent
        _, writer = await asyncio.open_connection(host, port, ssl=blind, server_hostname=host)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
    return _presented((x509.load_der_x509_certificate(der),), *problems)


def _clients() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """One that looks at the chain alone, and one that looks at the name too."""
    chain, whole = trust(), trust()
    chain.check_hostname = False
    return chain, whole


def _presented(
    certificates: tuple[x509.Certificate, ...],
    chain: ssl.SSLCertVerificationError | None,
    whole: ssl.SSLCertVerificationError | None,
) -> Presented:
    """Dates have a check of their own; with them wrong OpenSSL does not come to the names."""
    distrust = None
    if chain is not None and chain.verify_code not in (_EXPIRED, _NOT_YET):
        distrust = chain.verify_message
    other = None
    if whole is not None and whole.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        other = whole.verify_message
    return Presented(certificates, distrust, other)


def _in_memory(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str
) -> ssl.SSLCertVerificationError | None:
    """Shake hands without a network; returns what the client has against the certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(8):
        for side in tuple(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as exc:
                return exc
            sides.remove(side)
        if not sides:
            break
    return None


async def _over_network(
    client: ssl.SSLContext, host: str, port: int
) -> ssl.SSLCertVerificationError | None:
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=client, server_hostname=host)
    except ssl.SSLCertVerificationError as exc:
        return exc
    writer.transport.abort()
    return None
