"""Keys, enrolment and the local socket: what operators do."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aegis_control.local_socket import short_path
from aegis_control.serve import ListenFailed, serving
from aegis_control.state_dir import StateBusy, StateUnusable
from aegis_protocol.actions import Role
from aegis_protocol.signing import b64
from control_fixtures import AGENTS, MCP, Client, bench, config, control
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

pytestmark = pytest.mark.both_stores


async def test_the_first_start_makes_a_closed_folder_and_an_operator_key(tmp: Path) -> None:
    with capture_logs() as logs:
        async with bench(tmp / "s") as b:
            file = b.served.operator_key
            assert file == tmp / "s" / "operator.key"
            key = file.read_text().strip()
            whoami = (await b.client(key).ask("GET", "/whoami")).body
            assert whoami["role"] == "operator"
            for path in (tmp / "s").iterdir():
                if not path.name.startswith("control.db"):
                    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert stat.S_IMODE((tmp / "s").stat().st_mode) == 0o700
    assert key not in str(logs)
    with socket.socket(socket.AF_UNIX) as dead:  # what a killed control leaves behind
        dead.bind(str(tmp / "s" / "control.sock"))
    async with control(tmp / "s") as again:
        assert again.operator_key is None
        async with aiohttp.ClientSession() as session:
            client = Client(session, again.base_url, key)
            assert (await client.ask("GET", "/whoami")).status == 200


@pytest.mark.sqlite
async def test_no_secret_of_a_key_or_token_lies_in_the_database(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        made = await b.served.control.keyring.make_key(Role.BUILDER)
        token = await b.served.control.keyring.make_token(ttl_s=60, name=None)
    raw = b"".join(path.read_bytes() for path in (tmp / "s").glob("control.db*"))
    assert made.id.encode() in raw
    assert made.key.rsplit("_", 1)[1].encode() not in raw
    assert token.token.encode() not in raw
    with closing(sqlite3.connect(tmp / "s" / "control.db")) as database:
        ((digest,),) = database.execute("SELECT digest FROM keys WHERE id = ?", (made.id,))
    assert len(digest) == 32


async def test_keys_are_made_listed_and_revoked_by_an_operator(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        operator = await b.client_of(Role.OPERATOR)
        wanted = {"role": "builder", "name": "ci", "limits": {"targets": ["esp32"]}}
        made = await operator.ask("POST", "/services/keys", wanted)
        assert made.status == 201
        client = b.client(made.body["key"])
        whoami = (await client.ask("GET", "/whoami")).body
        assert (whoami["role"], whoami["limits"]) == ("builder", {"targets": ["esp32"]})
        assert "board.flash" not in whoami["actions"]
        rows = (await operator.ask("GET", "/services/keys")).body["keys"]
        (row,) = [row for row in rows if row["id"] == made.body["id"]]
        assert (row["name"], row["revoked"]) == ("ci", False)
        assert "key" not in row
        path = f"/services/keys/{made.body['id']}"
        assert (await operator.ask("DELETE", path)).status == 204
        assert (await operator.ask("DELETE", path)).status == 204
        assert (await client.ask("GET", "/whoami")).error.code == "auth.key_wrong"
        missing = await operator.ask("DELETE", "/services/keys/nothing")
        assert (missing.status, missing.error.code) == (404, "key.not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "king"}, "role"),
        ({"role": "builder", "limits": {"colours": ["red"]}}, "limits.colours"),
        ({"role": "builder", "limits": {"labels": ["site"]}}, "limits.labels"),
        ({"role": "builder", "expires_in_secs": 0}, "expires_in_secs"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(
    tmp: Path, body: dict[str, Any], field: str
) -> None:
    async with bench(tmp / "s") as b:
        operator = await b.client_of(Role.OPERATOR)
        answer = await operator.ask("POST", "/services/keys", body)
        assert (answer.status, answer.error.facts["field"]) == (400, field)


async def test_a_token_enrols_one_machine_and_survives_a_lost_answer(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        operator = await b.client_of(Role.OPERATOR)
        token = (await operator.ask("POST", "/services/enroll-tokens", {})).body["token"]
        first, second = b.machine("first"), b.machine("second")
        assert (await first.enroll(token)).agent_id == first.id
        assert (await first.enroll(token)).agent_id == first.id
        request = second.enroll_request(token).model_dump(mode="json")
        with capture_logs() as logs:
            refused = await operator.ask("POST", "/agents/enroll", request)
        assert (refused.status, refused.error.code) == (403, "enroll.refused")
        assert any(entry["event"] == "enroll.refused" for entry in logs)
        assert token not in str(logs)


async def test_what_is_wrong_with_an_enrolment_is_told_apart(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        machine, client = b.machine(), b.client(None)
        good = machine.enroll_request(AGENTS).model_dump(mode="json")
        stranger = b64(Ed25519PrivateKey.generate().sign(b"x"))
        for change, status, code in (
            ({"token": "guessed"}, 403, "enroll.refused"),
            ({"signature": stranger}, 403, "enroll.refused"),
            ({"public_key": "short"}, 400, "request.invalid"),
            ({"public_key": "not base64 at all"}, 400, "request.invalid"),
            ({"base_url": "https://elsewhere.example"}, 400, "request.invalid"),
            ({"name": "../bench"}, 400, "request.invalid"),
        ):
            answer = await client.ask("POST", "/agents/enroll", good | change)
            assert (answer.status, answer.error.code) == (status, code), change
        operator = await b.client_of(Role.OPERATOR)
        assert (await operator.ask("GET", "/agents")).body == {"agents": []}
        elsewhere = await client.ask("POST", "/agents/enroll", good | {"base_url": "http://x"})
        assert b.base_url in elsewhere.error.message


async def test_a_token_for_a_name_enrols_no_other_and_an_expired_one_nobody(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        keyring = b.served.control.keyring
        named = (await keyring.make_token(ttl_s=60, name="bench")).token
        late = (await keyring.make_token(ttl_s=-1, name=None)).token
        for name, token in (("other", named), ("other", late)):
            request = b.machine(name).enroll_request(token).model_dump(mode="json")
            answer = await b.client(None).ask("POST", "/agents/enroll", request)
            assert answer.error.code == "enroll.refused"
        await b.machine("bench").enroll(named)


async def test_a_name_that_is_taken_leaves_the_token_unused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent("bench")
        token = (await b.served.control.keyring.make_token(ttl_s=60, name=None)).token
        twin = b.machine("bench")
        request = twin.enroll_request(token).model_dump(mode="json")
        answer = await b.client(None).ask("POST", "/agents/enroll", request)
        assert (answer.status, answer.error.code) == (409, "enroll.name_taken")
        twin.name = "bench-2"
        await twin.enroll(token)


async def test_the_local_socket_needs_no_key_and_serves_operators_only_there(
    tmp: Path,
) -> None:
    # a path that is longer than a socket's may be
    state = tmp / ("long" * 20) / ("path" * 20)
    state.parent.mkdir()
    async with control(state) as served:
        with short_path(served.socket_path) as short:
            connector = aiohttp.UnixConnector(path=short)
            async with aiohttp.ClientSession(connector=connector) as session:
                client = Client(session, "http://control", None)
                whoami = (await client.ask("GET", "/whoami")).body
                assert (whoami["identity"], whoami["role"]) == ("local", "operator")
                made = await client.ask("POST", "/services/keys", {"role": "viewer"})
                assert made.status == 201
                grant = await client.ask("POST", "/grant/request", {})
                assert (grant.status, grant.error.code) == (404, "path.not_found")
    assert not served.socket_path.exists()


@pytest.mark.requires("root", "linux")
async def test_another_user_of_the_machine_is_not_the_local_operator(tmp: Path) -> None:
    async with control(tmp / "s") as served:
        served.socket_path.chmod(0o777)
        (tmp / "s").chmod(0o755)
        ask = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(b'GET /services/keys HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n');"
            "sys.stdout.buffer.write(s.recv(65536))"
        )
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/env", "python3", "-c", ask, str(served.socket_path)),
            stdout=asyncio.subprocess.PIPE,
            user=65534,
            cwd="/",
        )
        out, _ = await process.communicate()
        assert b" 401 " in out.split(b"\r\n")[0]
        assert b"auth.key_wrong" in out


async def test_a_second_control_on_one_folder_is_refused_and_the_first_goes_on(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        with pytest.raises(StateBusy) as refused:
            async with serving(config(tmp / "s")):
                pass
        assert str(tmp / "s") in refused.value.message
        assert (await b.client().ask("GET", "/health")).status == 200
        assert b.served.socket_path.exists()


async def test_an_address_in_use_a_damaged_key_and_a_file_for_a_folder_are_named(
    tmp: Path,
) -> None:
    async with control(tmp / "s") as served:
        with pytest.raises(ListenFailed) as taken:
            async with serving(config(tmp / "t", listen=f"127.0.0.1:{served.port}")):
                pass
        assert str(served.port) in taken.value.message
    (tmp / "s" / "issuer.pem").write_text("no key")
    with pytest.raises(StateUnusable):
        async with serving(config(tmp / "s")):
            pass
    (tmp / "file").write_text("")
    with pytest.raises(StateUnusable):
        async with serving(config(tmp / "file")):
            pass


async def test_a_shared_secret_that_is_short_is_warned_of_and_never_logged(tmp: Path) -> None:
    with capture_logs() as logs:
        async with control(tmp / "s", mcp_auth_secret="tiny", agent_auth_secret=None):
            pass
    assert [entry["setting"] for entry in logs if entry["event"] == "config.short"] == [
        "MCP_AUTH_SECRET"
    ]
    assert "tiny" not in str(logs)
    assert MCP not in str(logs)
    assert os.environ.get("MCP_AUTH_SECRET") is None
