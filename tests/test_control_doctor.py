"""`aegis-control doctor`: each thing that can be wrong is found, named, and has a remedy."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aegis_control.commands.doctor_commands import diagnose
from aegis_control.doctor import running_checks
from aegis_control.doctor.check import Check, Diagnosis
from aegis_control.doctor.subject import Answers, Machine, Subject
from aegis_control.store import audit
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from aegis_protocol.http_api.agents import Agent
from aegis_protocol.http_api.jobs import Job, Reason
from aegis_protocol.http_api.status import ControlStatus, Replica
from aegis_protocol.states import AgentState, JobState
from certificates import a_certificate, an_authority
from control_fixtures import Bench, bench, board
from control_runs import call
from databases import postgres, postgres_url
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs
from turn_server import SECRET, Way, running

__all__ = ["postgres", "postgres_url"]

LONG = "a secret that is long enough"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def machine(**facts: Any) -> Machine:
    """A machine without a fault but those of `facts`."""
    good: dict[str, Any] = {
        "clock_synchronized": lambda: True,
        "free_bytes": lambda path: (10_000 * MIB, 20_000 * MIB),
        "file_limit": lambda: 65_536,
    }
    return Machine(**(good | facts))


async def examined(tmp: Path, on: Machine | None = None, **settings: str) -> Diagnosis:
    """What the doctor says of the state in `tmp / "s"`, with these settings and no others."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp),
        "AEGIS_STATE_DIR": str(tmp / "s"),
        "AEGIS_CONFIG_DIR": str(tmp / "etc"),
        "AEGIS_LISTEN": "127.0.0.1:0",
    } | settings
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name not in environment]:
            if name.startswith(("AEGIS_", "CONTROL_", "MCP_", "AGENT_", "ALLOWED_")):
                patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        return await asyncio.to_thread(diagnose, None, None, None, on or machine())


def check(found: Diagnosis, name: str) -> Check:
    """The check whose name begins so."""
    (one,) = [check for check in found.checks if check.name.startswith(name)]
    return one


def finds(found: Diagnosis, name: str, *words: str) -> None:
    """There is such an error, it says these words, and how to mend it."""
    one = check(found, name)
    assert one.status == "error", one
    assert all(word in one.detail + one.remedy for word in words), one
    assert len(one.remedy) > 10
    assert found.status == "error"
    assert any(line.startswith(name) for line in found.as_json()["errors"])


async def served_once(tmp: Path, **settings: Any) -> None:
    """A state directory as a control leaves it."""
    async with bench(tmp / "s", **settings):
        pass


async def test_a_control_with_everything_in_order_has_no_finding(tmp: Path) -> None:
    authority = an_authority(tmp)
    cert, key = a_certificate(tmp, authority, "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    with running() as turn:
        trusted = tmp / "roots.pem"
        trusted.write_bytes(authority.path.read_bytes() + turn.ca.read_bytes())
        settings = {
            "AEGIS_LISTEN": f"127.0.0.1:{port}",
            "CONTROL_PUBLIC_BASE_URL": url,
            "AEGIS_TLS_CERT_FILE": str(cert),
            "AEGIS_TLS_KEY_FILE": str(key),
            "AEGIS_CA_FILE": str(trusted),
            "MCP_AUTH_SECRET": LONG,
            "ALLOWED_ORIGINS": "https://app.example.org",
            "AEGIS_STUN_URLS": f"stun:127.0.0.1:{turn.port}",
            "AEGIS_TURN_URLS": f"{turn.url('udp')},{turn.url('tcp')},{turn.url('tls')}",
            "AEGIS_TURN_SECRET": SECRET * 2,
        }
        async with bench(
            tmp / "s",
            listen=f"127.0.0.1:{port}",
            public_base_url=url,
            tls_cert_file=cert,
            tls_key_file=key,
        ):
            wrong = await examined(tmp, None, **settings)
            right = await examined(tmp, None, **settings | {"AEGIS_TURN_SECRET": SECRET})
    assert [one for one in right.checks if one.status == "error"] == []
    assert {one.name for one in right.checks if one.status == "warning"} <= {
        "agents",
        "secret AEGIS_TURN_SECRET",
    }
    assert len(right.checks) >= 30
    ways: tuple[Way, ...] = ("udp", "tcp", "tls")
    for way in ways:
        assert "gave a relay at 127.0.0.1:" in check(right, f"turn {turn.url(way)}").detail
        finds(wrong, f"turn {turn.url(way)}", "refuses the credentials", "static-auth-secret")
    assert "sees this machine as 127.0.0.1:" in check(right, "stun ").detail


async def test_a_relay_that_does_not_answer_is_found_and_none_at_all_is_told(tmp: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        found = await examined(
            tmp,
            AEGIS_STUN_URLS=f"stun:127.0.0.1:{port}",
            AEGIS_TURN_URLS=f"turn:127.0.0.1:{port}?transport=tcp",
            AEGIS_TURN_SECRET=LONG,
        )
    finds(found, "stun ", "AEGIS_STUN_URLS")
    finds(found, "turn ", "can't be reached")
    assert check(found, "relay_entry").status == "ok"
    assert check(await examined(tmp), "relay_entry").status == "warning"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ALLOWED_ORIGINS": "*"}, ("ALLOWED_ORIGINS", "wildcard")),
        ({"AEGIS_LISTEN": "nowhere"}, ("AEGIS_LISTEN", "host:port")),
        ({"AEGIS_TURN_URLS": "turn:t.example.org"}, ("AEGIS_TURN_SECRET",)),
    ],
)
async def test_a_wrong_setting_is_found_and_what_needs_none_is_checked_all_the_same(
    tmp: Path, settings: dict[str, str], words: tuple[str, ...]
) -> None:
    found = await examined(tmp, None, **settings)
    finds(found, "config", *words)
    finds(found, "control_plane")


async def test_secrets_that_are_short_or_open_are_found(tmp: Path) -> None:
    (tmp / "etc").mkdir()
    secrets = tmp / "etc" / "secrets.env"
    secrets.write_text("MCP_AUTH_SECRET=short\n")
    secrets.chmod(0o644)
    found = await examined(tmp, AGENT_AUTH_SECRET="a bit longer")
    finds(found, "config_files", str(secrets), "mode 644", "chmod 600")
    finds(found, "secret MCP_AUTH_SECRET", "5 characters", "openssl rand")
    assert check(found, "secret AGENT_AUTH_SECRET").status == "warning"
    assert "short" not in check(found, "secret MCP_AUTH_SECRET").detail
    secrets.chmod(0o600)
    (tmp / "etc" / "control.env").write_text("AEGIS_LISTENS=127.0.0.1:1\n")
    unknown = check(await examined(tmp), "config_files")
    assert (unknown.status, "AEGIS_LISTENS" in unknown.detail) == ("warning", True)


async def test_proxies_that_everybody_could_be_are_found(tmp: Path) -> None:
    found = await examined(tmp, AEGIS_TRUSTED_PROXIES="10.0.0.0/8, 0.0.0.0/0")
    finds(found, "trusted_proxies", "0.0.0.0/0")
    behind = await examined(tmp, CONTROL_PUBLIC_BASE_URL="https://control.example.org")
    assert check(behind, "trusted_proxies").status == "warning"


POLICY = """
[[rules]]
name = "ci"
identities = ["mcp", "ci-key", "nobody23"]
targets = ["esp32p4", "esp32p5"]
agents = ["lab-1", "lab-2"]
labels = ["site=lab1", "site=lab2"]
boards = ["p4-1", "p4-2"]
"""


async def test_a_policy_that_is_bad_missing_or_for_others_to_write_is_found(tmp: Path) -> None:
    none = await examined(tmp)
    assert (check(none, "policy_file").status, check(none, "policy_rules").status) == (
        "ok",
        "skipped",
    )
    (tmp / "etc").mkdir()
    file = tmp / "etc/policy.toml"
    file.write_text(POLICY)
    file.chmod(0o644)
    good = await examined(tmp)
    assert check(good, "policy_file").detail == f"{file}, 1 rules"
    file.chmod(0o664)
    finds(await examined(tmp), "policy_file", "mode 664", f"chmod go-w {file}")
    file.chmod(0o644)
    file.write_text(POLICY + "chanels = []\n")
    finds(await examined(tmp), "policy_file", "line 9", "did you mean channels?")
    missing = str(tmp / "no-such.toml")
    finds(await examined(tmp, AEGIS_POLICY_FILE=missing), "policy_file", missing)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_policy_that_control_may_not_read_or_a_stranger_owns_is_found(tmp: Path) -> None:
    await served_once(tmp)
    for path in (tmp, tmp / "s", *(tmp / "s").iterdir()):
        os.chown(path, 65_534, 65_534)
    (tmp / "etc").mkdir()
    file = tmp / "etc/policy.toml"
    file.write_text(POLICY)
    file.chmod(0o600)
    finds(await examined(tmp), "policy_file", "Permission denied")
    os.chown(file, 65_534, 65_534)
    assert check(await examined(tmp), "policy_file").status == "ok"
    file.chmod(0o644)
    os.chown(file, 65_533, 65_533)
    finds(await examined(tmp), "policy_file", "uid 65533", "chown root")


async def test_a_rule_that_names_what_nobody_is_called_is_told(tmp: Path) -> None:
    (tmp / "etc").mkdir()
    file = tmp / "etc/policy.toml"
    file.write_text(POLICY)
    file.chmod(0o644)
    assert check(await examined(tmp), "policy_rules").status == "skipped"
    async with bench(tmp / "s") as b:
        made = await b.served.control.keyring.make_key(Role.FLASHER)
        await b.agent("lab-1", labels={"site": "lab1"}, boards=(board("p4-1"),))
        await b.machine("lab-2").enroll()
        text = POLICY.replace("ci-key", made.id)
        file.write_text(text)
        told = check(await examined(tmp, MCP_AUTH_SECRET=LONG), "policy_rules")
        assert told.status == "warning"
        for word in ("identity nobody23", "target esp32p5", "label site=lab2", "board p4-2"):
            assert f"rule ci: {word}" in told.detail
        for word in ("mcp", made.id, "lab-1", "agent lab-2", "esp32p4", "p4-1"):
            assert word not in told.detail
        for word in ("nobody23", "esp32p5", "site=lab2", "p4-2"):
            text = text.replace(f', "{word}"', "")
        file.write_text(text)
        assert check(await examined(tmp, MCP_AUTH_SECRET=LONG), "policy_rules").status == "ok"
        unset = check(await examined(tmp), "policy_rules")
        assert (unset.status, "rule ci: identity mcp" in unset.detail) == ("warning", True)


async def test_a_state_directory_open_to_others_is_found(tmp: Path) -> None:
    await served_once(tmp)
    assert check(await examined(tmp), "state_dir").status == "ok"
    (tmp / "s").chmod(0o755)
    finds(await examined(tmp), "state_dir", "mode 755", "chmod 700")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_roots_files_in_controls_directory_are_found_and_the_doctor_leaves_none(
    tmp: Path,
) -> None:
    await served_once(tmp)
    for path in (tmp, tmp / "s", *(tmp / "s").iterdir()):
        os.chown(path, 65_534, 65_534)
    assert check(await examined(tmp), "state_dir").status == "ok"
    assert {path.stat().st_uid for path in (tmp / "s").iterdir()} == {65_534}
    os.chown(tmp / "s" / "pepper", 0, 0)
    found = await examined(tmp)
    finds(found, "state_dir", "pepper", "chown")
    finds(found, "pepper")
    assert os.geteuid() == 0


async def test_keys_that_are_damaged_or_open_are_found(tmp: Path) -> None:
    await served_once(tmp)
    good = await examined(tmp)
    assert check(good, "issuer_key").status == check(good, "pepper").status == "ok"
    (tmp / "s" / "pepper").write_bytes(b"too short")
    (tmp / "s" / "issuer.pem").chmod(0o640)
    found = await examined(tmp)
    finds(found, "pepper", "9 bytes")
    finds(found, "issuer_key", "mode 640")
    (tmp / "s" / "issuer.pem").chmod(0o600)
    (tmp / "s" / "issuer.pem").write_text("no key")
    finds(await examined(tmp), "issuer_key", "control.state_unusable")


async def test_a_full_disk_few_files_and_a_loose_clock_are_found(tmp: Path) -> None:
    poor = machine(
        free_bytes=lambda path: (10 * MIB, 20_000 * MIB),
        file_limit=lambda: 100,
        clock_synchronized=lambda: False,
    )
    found = await examined(tmp, poor)
    finds(found, "disk", "10 MiB")
    finds(found, "file_limit", "100 files", "LimitNOFILE")
    assert check(found, "clock").status == "warning"
    little = await examined(tmp, machine(free_bytes=lambda path: (500 * MIB, 20_000 * MIB)))
    assert check(little, "disk").status == "warning"


async def test_a_store_that_is_no_database_is_found(tmp: Path) -> None:
    await served_once(tmp)
    (tmp / "s" / "control.db").write_bytes(b"this is no database at all, " * 100)
    found = await examined(tmp)
    finds(found, "database", "store.unusable")


async def test_a_store_with_a_damaged_page_is_found(tmp: Path) -> None:
    await served_once(tmp)
    path = tmp / "s" / "control.db"
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 3))
    finds(await examined(tmp), "integrity", "backup")


async def test_an_audit_that_was_tampered_with_is_found(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        for name in ("one", "two", "three"):
            await b.served.control.keyring.make_key(Role.VIEWER, name=name)
        async with asyncio.timeout(20):
            while True:
                async with b.served.control.database.read() as conn:
                    sealed = await audit.newest(conn, audit.Wanted(), limit=100)
                if len(sealed) >= 3:
                    break
                await asyncio.sleep(0.05)
    assert check(await examined(tmp), "audit").status == "ok"
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("DROP TRIGGER audit_written_once")
        connection.execute("DROP TRIGGER audit_kept")
        connection.execute("UPDATE audit SET who = 'somebody else' WHERE seq = 2")
    finds(await examined(tmp), "audit", "the record 2", "audit verify")
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("DELETE FROM audit WHERE seq = 2")
    finds(await examined(tmp), "audit", "behind 1 are missing")
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("DELETE FROM audit")
    finds(await examined(tmp), "audit", "were signed for, and the last is 0")


async def test_tables_of_a_newer_version_are_found_and_older_ones_are_told(tmp: Path) -> None:
    await served_once(tmp)
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    finds(await examined(tmp), "migrations", "9999", "newer")
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    older = check(await examined(tmp), "migrations")
    assert (older.status, "migrate" in older.remedy) == ("warning", True)


async def test_a_postgresql_that_is_away_and_one_with_another_clock_are_found(
    tmp: Path, postgres_url: str
) -> None:
    async with Database.open(postgres_url):
        pass
    good = await examined(tmp, AEGIS_DATABASE_URL=postgres_url)
    for name in ("database", "migrations", "store_clock"):
        assert check(good, name).status == "ok", check(good, name)
    late = machine(now_s=lambda: time.time() - 60)
    finds(await examined(tmp, late, AEGIS_DATABASE_URL=postgres_url), "store_clock", "60.", "ahead")
    await served_once(tmp)
    key = "what replicas share " * 2
    shared = await examined(tmp, AEGIS_DATABASE_URL=postgres_url, AEGIS_SEAL_KEY=key)
    assert "issuer list" in check(shared, "issuer_key").detail
    assert "issuer list" not in check(await examined(tmp), "issuer_key").detail
    away = "postgresql+asyncpg://aegis@127.0.0.1:1/aegis"
    finds(await examined(tmp, AEGIS_DATABASE_URL=away), "database", "does not answer")


async def test_a_port_that_another_program_has_is_found(tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        found = await examined(tmp, AEGIS_LISTEN=listen)
    finds(found, "listening", listen, "another program")


async def test_a_control_that_listens_elsewhere_than_is_said_is_found(tmp: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with bench(tmp / "s", public_base_url=f"http://127.0.0.1:{port}"):
            found = await examined(
                tmp,
                AEGIS_LISTEN=f"127.0.0.1:{port}",
                CONTROL_PUBLIC_BASE_URL=f"http://127.0.0.1:{port}",
            )
    finds(found, "listening", "takes no connection")
    finds(found, "public_url", str(port), "CONTROL_PUBLIC_BASE_URL")
    assert check(found, "control_plane").status == "ok"


async def test_a_control_whose_store_is_gone_is_found(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await drop_the_tables(b)
        found = await examined(tmp)
        shown = await call(tmp, "status")
    finds(found, "control_plane", "its store does not answer")
    assert check(found, "agents").status == "skipped"
    assert shown.code == 0 and "none is enrolled" not in shown.out
    assert shown.out.count("not known without the store") == 2


async def drop_the_tables(b: Bench) -> None:
    def drop() -> None:
        engine = create_engine(f"sqlite:///{b.served.control.config.state_dir / 'control.db'}")
        with engine.begin() as conn:
            conn.execute(text("PRAGMA foreign_keys=OFF"))
            conn.execute(text("ALTER TABLE jobs RENAME TO lost_jobs"))
        engine.dispose()

    await asyncio.to_thread(drop)


async def test_a_control_that_does_not_run_is_found_and_the_rest_is_checked(tmp: Path) -> None:
    await served_once(tmp)
    found = await examined(tmp)
    finds(found, "control_plane", "control.unreachable", "aegis-control serve")
    assert [c.name for c in found.checks if c.status == "error"] == ["control_plane"]
    for name in ("database", "migrations", "integrity", "operator_keys", "listening"):
        assert check(found, name).status == "ok", check(found, name)


async def test_a_certificate_that_clients_would_refuse_is_found(tmp: Path) -> None:
    authority = an_authority(tmp)
    base = {
        "CONTROL_PUBLIC_BASE_URL": "https://control.example.org",
        "AEGIS_CA_FILE": str(authority.path),
    }

    async def with_files(cert: Path, key: Path, **more: str) -> Diagnosis:
        files = {"AEGIS_TLS_CERT_FILE": str(cert), "AEGIS_TLS_KEY_FILE": str(key)}
        return await examined(tmp, None, **base | files | more)

    good = await with_files(*a_certificate(tmp, authority, "control.example.org"))
    for name in ("tls_certificate", "tls_expiry", "tls_names"):
        assert check(good, name).status == "ok", check(good, name)

    unknown = await with_files(
        *a_certificate(tmp, authority, "control.example.org"), AEGIS_CA_FILE=""
    )
    finds(unknown, "tls_certificate", "won't trust", "AEGIS_CA_FILE")
    assert check(unknown, "tls_names").status == "ok"

    over = await with_files(*a_certificate(tmp, authority, "control.example.org", days=-1))
    finds(over, "tls_expiry", "expired on", "Renew")
    assert check(over, "tls_certificate").status == "ok"

    soon = await with_files(*a_certificate(tmp, authority, "control.example.org", days=5))
    assert check(soon, "tls_expiry").status == "warning"

    other = await with_files(*a_certificate(tmp, authority, "another.example.org"))
    finds(other, "tls_names", "control.example.org")
    assert check(other, "tls_certificate").status == "ok"

    cert, _ = a_certificate(tmp, authority, "control.example.org")
    _, key = a_certificate(tmp, authority, "control.example.org")
    finds(await with_files(cert, key), "tls_certificate", "can't be had")


async def test_a_proxys_certificate_is_judged_as_clients_meet_it(tmp: Path) -> None:
    authority = an_authority(tmp)
    cert, key = a_certificate(tmp, authority, "another.example.org", days=3)
    async with bench(tmp / "p", tls_cert_file=cert, tls_key_file=key) as proxy:
        url = proxy.base_url
        found = await examined(tmp, CONTROL_PUBLIC_BASE_URL=url, AEGIS_CA_FILE=str(authority.path))
    finds(found, "tls_names", "127.0.0.1")
    assert check(found, "tls_expiry").status == "warning"
    assert check(found, "tls_certificate").status == "ok"


def test_what_a_running_control_tells_is_judged() -> None:
    status = ControlStatus(
        pid=1, version="0", protocol=1, started_at=0, time=0, base_url="http://c", listen="c:1",
        state_dir="/s", store="sqlite", store_ok=True, schema_revision="1", agents={}, jobs={},
        links=0, event_streams=0, file_limit=65_536, resident_bytes=0, slow_ms=500,
        slow={"write": 2}, skews_s={"ag-1": -12.0, "ag-2": 0.1},
        replicas=tuple(
            Replica(id=n, name=n, version="1", address="", started_at=0, seen_at=0, alive=n == "a",
                    here=n == "a")
            for n in ("a", "b")
        ),
    )  # fmt: skip
    waiting = Job(
        id="j", identity="me", state=JobState.PENDING, created_at=0, updated_at=0, timeout_secs=1,
        reasons=(Reason(code="target.missing", detail="no toolchain for esp32"),),
    )  # fmt: skip
    paused = Agent(id="ag-1", name="lab", key="", state=AgentState.PAUSED, reason="disk 96 %")
    subject = Subject(None, None, Answers(status, (paused,), (waiting,)), None, machine=machine())
    judged = {
        look.__name__: look(subject)
        for look in (
            running_checks.agents,
            running_checks.agent_clocks,
            running_checks.pending_jobs,
            running_checks.replicas,
            running_checks.slow_operations,
        )
    }
    assert {one.status for one in judged.values()} == {"warning"}
    assert all(one.remedy for one in judged.values())
    for name, word in {
        "agents": "lab (disk 96 %)",
        "agent_clocks": "lab by -12.0 s",
        "pending_jobs": "no toolchain for esp32",
        "replicas": "dead: b",
        "slow_operations": "2 of kind write",
    }.items():
        assert word in judged[name].detail


async def test_the_command_prints_a_table_or_the_object_and_exits_1_for_an_error(
    tmp: Path,
) -> None:
    shown = await call(tmp, "doctor", AEGIS_LISTEN="127.0.0.1:0")
    assert shown.code == 1
    assert "control_plane" in shown.out and "-> Start `aegis-control serve`" in shown.out
    listed = await call(tmp, "doctor", "--json", AEGIS_LISTEN="127.0.0.1:0")
    assert (listed.code, listed.data["status"]) == (1, "error")
    assert set(listed.data) == {"status", "checks", "errors"}
    assert set(listed.data["checks"][0]) == {"name", "status", "detail", "remedy"}
    assert any(line.startswith("control_plane: ") for line in listed.data["errors"])


async def test_a_control_elsewhere_is_examined_by_its_url(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        made = (await call(tmp, "keys", "create", "--role", "operator", "--json")).data
        here = {"AEGIS_STATE_DIR": str(tmp / "none"), "AEGIS_OPERATOR_KEY": made["key"]}
        found = await call(tmp, "doctor", "--json", "--url", b.base_url, **here)
    names = [one["name"] for one in found.data["checks"]]
    assert found.code == 0, found
    assert "control_plane" in names and "disk" not in names
    shutil.rmtree(tmp / "none", ignore_errors=True)
