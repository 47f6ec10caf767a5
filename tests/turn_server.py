"""
A real TURN server (coturn) of a test's own on loopback, over UDP, TCP and TLS.

Addresses on loopback may be relayed to here, which docs/networks.md forbids for a server in use.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from aegis_control.turn import SPARE_S, ice_servers
from aegis_links.ice_servers import ask_all
from aegis_protocol.http_api.grants import IceServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECRET: Final = "a shared secret"
HOST: Final = "127.0.0.1"

Way = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True)
class TurnServer:
    host: str
    port: int
    tls_port: int
    ca: Path
    process: subprocess.Popen[bytes]
    secret: str = SECRET

    def url(self, way: Way) -> str:
        if way == "tls":
            return f"turns:{self.host}:{self.tls_port}"
        return f"turn:{self.host}:{self.port}?transport={way}"

    def servers(
        self, *ways: Way, secret: str | None = None, ended_s: float = -600
    ) -> tuple[IceServer, ...]:
        """As control hands them out with a grant of a job that ended `ended_s` ago."""
        return ice_servers(
            stun_urls=(),
            turn_urls=[self.url(way) for way in ways],
            turn_secrets=(secret or self.secret,),
            job_id="job",
            side="client",
            ends_at_s=time.time() - ended_s - SPARE_S,
        )

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


@contextmanager
def running(host: str = HOST, *, secret: str = SECRET) -> Iterator[TurnServer]:
    """Started, answering at that address of this machine, and stopped in the end."""
    folder = Path(tempfile.mkdtemp(prefix="aegis-turn-"))
    folder.chmod(0o755)
    certificate, key = write_certificate(folder, host)
    port, tls_port = _free_port(host), _free_port(host)
    words = [
        "turnserver", "-n", "--no-cli", "--no-dtls", "--simple-log", "--fingerprint",
        f"--listening-ip={host}", f"--relay-ip={host}", "--allow-loopback-peers",
        f"--listening-port={port}", f"--tls-listening-port={tls_port}",
        f"--cert={certificate}", f"--pkey={key}",
        "--use-auth-secret", f"--static-auth-secret={secret}", "--realm=aegis.test",
        "--log-file=stdout", f"--pidfile={folder}/turn.pid", f"--userdb={folder}/turn.db",
    ]  # fmt: skip
    with (folder / "turn.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    server = TurnServer(host, port, tls_port, certificate, process, secret)
    try:
        with ThreadPoolExecutor() as thread:  # there may be a loop in this one
            thread.submit(asyncio.run, _answering(server, folder / "turn.log")).result()
        yield server
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(folder)


async def _answering(server: TurnServer, log: Path) -> None:
    """Return once it answers by every way."""
    async with asyncio.timeout(20):
        while True:
            asked = await ask_all(server.servers("udp", "tcp", "tls"), tls=server.trust)
            if all(answer.reason is None for answer in asked):
                return
            assert server.process.poll() is None, log.read_text()
            await asyncio.sleep(0.02)


def write_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A certificate for `host` that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "turn")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "turn-cert.pem", folder / "turn-key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return public, private


def _free_port(host: str) -> int:
    with socket.socket() as tcp:
        tcp.bind((host, 0))
        return int(tcp.getsockname()[1])
