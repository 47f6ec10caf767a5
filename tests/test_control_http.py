"""What is true of every request: errors, origins, ids, the route table and its document."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import datetime
import ipaddress
import re
import sqlite3
import ssl
from http import HTTPStatus
from pathlib import Path

import aegis_control
import aiohttp
import pytest
from aegis_control.http.auth import remote_address
from aegis_control.http.openapi import document
from aegis_control.http.routes import ROUTES
from aegis_control.http.statuses import STATUS
from aegis_protocol import failures
from aegis_protocol.actions import Role
from aegis_protocol.control_link import JobOffer
from aegis_protocol.errors import ErrorReply, known_codes
from aegis_protocol.events import Assigned
from aiohttp.test_utils import make_mocked_request
from control_fixtures import MCP, bench, sdp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel
from structlog.testing import capture_logs

PAGE = "https://app.example.org"


async def test_what_is_not_there_and_what_has_no_such_method_are_errors_of_ours(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        for method, path, status, code in (
            ("GET", "/nothing", 404, "path.not_found"),
            ("GET", "/jobs/%2e%2e/x", 404, "path.not_found"),
            ("PUT", "/jobs", 405, "request.method_not_allowed"),
            ("GET", "/grant/request", 405, "request.method_not_allowed"),
            ("GET", "/jobs/nothing", 404, "job.not_found"),
            ("GET", "/jobs?limit=0", 400, "request.invalid"),
            ("GET", "/jobs?limit=many", 400, "request.invalid"),
        ):
            answer = await client.ask(method, path)
            assert (answer.status, answer.error.code) == (status, code), path
            assert answer.error.remedy
            ErrorReply.model_validate(answer.body)


async def test_every_answer_has_an_id_that_the_log_has_too(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        with capture_logs() as logs:
            answer = await b.client("wrong").ask("GET", "/jobs")
        (refused,) = [entry for entry in logs if entry["event"] == "request.refused"]
        assert refused["code"] == "auth.key_wrong"
        assert refused["remote"] == "127.0.0.1"
        assert answer.headers["X-Request-Id"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "wrong" not in [str(value) for value in refused.values()]


async def test_a_defect_is_a_500_with_the_logs_id_and_no_traceback(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp / "s") as b:

        def broken() -> None:
            raise RuntimeError("secret detail of the inside")

        monkeypatch.setattr(b.served.control.issuer, "jwks", broken)
        answer = await b.client().ask("GET", "/.well-known/jwks.json")
        assert (answer.status, answer.error.code) == (500, "internal.error")
        assert answer.error.facts == {"log_id": answer.headers["X-Request-Id"]}
        assert "secret detail" not in str(answer.body)


async def test_an_allowed_page_may_call_and_its_errors_are_readable(tmp: Path) -> None:
    async with bench(tmp / "s", allowed_origins=PAGE) as b:
        client = b.client()
        preflight = await client.ask(
            "OPTIONS",
            "/grant/request",
            headers={
                "Origin": PAGE,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, idempotency-key",
            },
        )
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
        assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
        for path, status in (("/whoami", 200), ("/jobs/nothing", 404), ("/nothing", 404)):
            answer = await client.ask("GET", path, headers={"Origin": PAGE})
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "Origin" in answer.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_foreign_page_is_refused_and_the_log_says_what_to_add(tmp: Path) -> None:
    async with bench(tmp / "s", allowed_origins=PAGE) as b:
        client = b.client()
        for origin in (
            "https://evil.example",
            "null",
            f"{PAGE}.evil.example",
            PAGE.replace("https", "http"),
            f"{PAGE}:8443",
        ):
            with capture_logs() as logs:
                answer = await client.ask("GET", "/whoami", headers={"Origin": origin})
            assert (answer.status, answer.error.code) == (403, "origin.refused")
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
            assert origin in answer.error.remedy
            (refused,) = [entry for entry in logs if entry["event"] == "origin.refused"]
            assert refused["facts"] == {"origin": origin}
        preflight = await client.ask("OPTIONS", "/jobs", headers={"Origin": "https://x.example"})
        assert preflight.status == 403


async def test_controls_own_pages_may_call_it(tmp: Path) -> None:
    async with bench(tmp / "s", public_base_url="https://control.example.org") as b:
        inside = f"http://127.0.0.1:{b.served.port}"
        for origin in ("https://control.example.org", inside):
            url = f"{inside}/whoami"
            headers = {"X-API-Key": MCP, "Origin": origin}
            async with b.session.get(url, headers=headers) as answer:
                assert answer.status == 200


async def test_an_event_stream_carries_the_cors_headers_too(tmp: Path) -> None:
    async with bench(tmp / "s", allowed_origins=PAGE) as b:
        client = b.client()
        job_id = (await client.request()).body["job_id"]
        url = f"{b.base_url}/signaling/{job_id}/events"
        headers = {"Authorization": f"Bearer {MCP}", "Origin": PAGE}
        async with b.session.get(url, headers=headers) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE


async def test_metrics_count_and_name_nobody(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        client = b.client()
        grant = await client.granted()
        await client.offer(grant)
        await client.ask("GET", "/whoami", headers={"X-API-Key": "differs"})
        text = (await client.ask("GET", "/metrics")).body
        for line in (
            "aegis_agents_online 1.0",
            "aegis_grants_total 1.0",
            "aegis_offers_total 1.0",
            'aegis_refusals_total{code="auth.keys_differ"} 1.0',
            'aegis_jobs{state="assigned"} 1.0',
            'aegis_job_moves_total{state="assigned"} 1.0',
        ):
            assert line in text
        for name in (agent.id, "bench", "mcp", grant.job_id):
            assert name not in text


async def test_the_document_names_every_route_with_its_models(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        served = (await b.client(None).ask("GET", "/openapi.json")).body
    assert served == document(ROUTES)
    shown = {(m.upper(), path) for path, methods in served["paths"].items() for m in methods}
    assert shown == {(route.method, route.path) for route in ROUTES}
    schemas = served["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", str(served)):
        assert reference in schemas
    assert schemas["GrantRequest"]["properties"]["peer_fingerprint"]["pattern"]
    assert served["paths"]["/whoami"]["get"]["security"]
    assert "security" not in served["paths"]["/health"]["get"]


async def test_every_route_with_a_role_refuses_who_has_none_and_who_has_less(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        nobody, viewer = b.client(None), await b.client_of(Role.VIEWER)
        for route in ROUTES:
            if route.role is None:
                continue
            path = re.sub(r"\{\w+\}", "x", route.path)
            answer = await nobody.ask(route.method, path)
            assert (answer.status, answer.error.code) == (401, "auth.key_missing"), path
            if route.role is not Role.VIEWER:
                answer = await viewer.ask(route.method, path)
                assert (answer.status, answer.error.code) == (403, "role.insufficient"), path


async def test_every_body_is_checked_before_anything_is_done(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        operator = await b.client_of(Role.OPERATOR)
        grant = await operator.granted()
        for route in ROUTES:
            if route.takes is None:
                continue
            headers = None
            if route.path == "/signaling/{job_id}/offer":
                headers = {"Authorization": f"Bearer {grant.grant}"}
            path = route.path.replace("{job_id}", grant.job_id).replace("{agent_id}", "bench")
            path = path.replace("{lease_id}", "some")
            for data in (b"", b"[]", b"{}", b"nonsense"):
                answer = await operator.ask(route.method, path, data=data, headers=headers)
                fine = data == b"{}" and not _required(route.takes)
                expected = (200, 201, 204) if fine else (400,)
                assert answer.status in expected, (path, data, answer.body)


def test_every_error_that_control_raises_has_a_status() -> None:
    by_name = {cls.__name__: code for code, cls in known_codes().items()}
    raised = set()
    folder = Path(aegis_control.__file__).parent
    for file in [*folder.glob("http/*.py"), *folder.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                if name in by_name and file.name not in _NOT_SERVED:
                    raised.add(by_name[name])
    assert failures.__path__
    assert {"job.not_found", "grant.stale", "enroll.name_taken"} <= raised | set(STATUS)
    assert raised - set(STATUS) == set()
    assert set(STATUS) <= set(known_codes())
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "seen"),
    [
        ("192.0.2.9", "198.51.100.1", "", "192.0.2.9"),
        ("10.0.0.1", "198.51.100.1", "10.0.0.0/8", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "10.0.0.0/8", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.0/8", "10.0.0.3"),
        ("::ffff:10.0.0.1", "198.51.100.1", "10.0.0.0/8", "198.51.100.1"),
        ("::ffff:192.0.2.9", "198.51.100.1", "10.0.0.0/8", "::ffff:192.0.2.9"),
    ],
)
def test_forwarded_headers_count_as_far_as_proxies_are_trusted(
    peer: str, forwarded: str, proxies: str, seen: str
) -> None:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    request = make_mocked_request("GET", "/", headers=headers).clone(remote=peer)
    networks = tuple(ipaddress.ip_network(p) for p in proxies.split() if p)
    assert remote_address(request, networks) == seen


async def test_a_body_that_never_ends_is_not_waited_for(tmp: Path) -> None:
    async with bench(tmp / "s", request_timeout_s=0.2) as b:
        reader, writer = await asyncio.open_connection("127.0.0.1", b.served.port)
        writer.write(
            b"POST /grant/request HTTP/1.1\r\nHost: x\r\nX-API-Key: "
            + MCP.encode()
            + b"\r\nContent-Length: 100\r\n\r\n{"
        )
        async with asyncio.timeout(5):
            status = await reader.readline()
        assert b" 503 " in status
        writer.close()
        await writer.wait_closed()


async def test_a_store_that_does_not_answer_is_a_503(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        await asyncio.to_thread(_damage, tmp / "s" / "control.db")
        health = await client.ask("GET", "/health")
        assert (health.status, health.body["status"]) == (503, "error")
        answer = await client.ask("GET", "/jobs")
        assert (answer.status, answer.error.code) == (503, "control.unavailable")


async def test_links_and_streams_end_without_a_crash_when_the_store_breaks(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        await client.offer(grant)
        offer = await agent.next(JobOffer)
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            with capture_logs() as logs:
                await asyncio.to_thread(_damage, tmp / "s" / "control.db")
                await agent.answer(offer)
                assert await agent.receive() is None
                await agent.send_hello()
                assert await agent.refusal() == "control.unavailable"
                b.served.control.hub.notify_all()
                assert await events.rest() == []
        assert {"store.failed"} <= {entry["event"] for entry in logs}
        assert "request.crashed" not in {entry["event"] for entry in logs}


async def test_the_offer_of_a_long_sdp_fits_a_request(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        lines = "".join(f"a=candidate:{n} 1 udp 1 192.0.2.1 9 typ host\r\n" for n in range(300))
        text = (sdp() + lines)[:16_384].rsplit("\r\n", 1)[0] + "\r\n"
        assert (await client.offer(grant, text)).status == 202


async def test_tls_serves_https_and_says_so_in_its_url(tmp: Path) -> None:
    cert, key = _self_signed(tmp)
    async with bench(tmp / "s", tls_cert_file=cert, tls_key_file=key) as b:
        assert b.base_url.startswith("https://127.0.0.1:")
        async with b.session.get(f"{b.base_url}/health", ssl=_trusting(cert)) as answer:
            assert answer.status == HTTPStatus.OK
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await b.session.get(f"{b.base_url}/health")


_NOT_SERVED = {
    *("config.py", "config_sources.py", "issuer.py", "state_dir.py", "serve.py", "cli.py"),
    *("sealing.py", "shared_secrets.py"),
}


def _required(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _damage(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as damage:
        damage.executescript("DROP TABLE keys; DROP TABLE idempotency; DROP TABLE jobs")


def _self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "key.pem").chmod(0o600)
    return folder / "cert.pem", folder / "key.pem"


def _trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=cert)
