"""API keys: their limits, their expiry, and the commands that make, find and revoke them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from aegis_control import key_limits
from aegis_control.commands.times import seconds_until
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from control_fixtures import bench
from control_runs import call
from structlog.testing import capture_logs

pytestmark = pytest.mark.both_stores


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A control in this process must not log into what a command prints."""
    with capture_logs():
        yield


async def test_a_key_is_made_with_limits_and_expiry_shown_once_and_listed_with_them(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        made = await call(
            tmp,
            *("keys", "create", "--role", "builder", "--name", "ci", "--expires", "90d"),
            *("--limit", "targets=esp32p4,esp32c6", "--limit", "labels=site=lab1"),
            *("--limit", "jobs=2", "--limit", "agents=bench", "--json"),
        )
        assert made.code == 0, made.err
        limits = {
            "targets": ["esp32p4", "esp32c6"],
            "labels": ["site=lab1"],
            "jobs": ["2"],
            "agents": ["bench"],
        }
        assert made.data["limits"] == limits
        assert abs(made.data["expires_at"] - time.time() - 90 * 86_400) < 60
        client = b.client(made.data["key"])
        whoami = (await client.ask("GET", "/whoami")).body
        assert (whoami["limits"], whoami["expires_at"]) == (limits, made.data["expires_at"])
        await client.request(target="esp32p4")

        (row,) = (await call(tmp, "keys", "list", made.data["id"], "--json")).data["keys"]
        assert (row["limits"], row["name"], row["revoked"]) == (limits, "ci", False)
        assert abs(row["asked_at"] - time.time()) < 60
        shown = (await call(tmp, "keys", "list", "--state-dir", str(tmp / "s"))).out
        for word in ("targets=esp32p4,esp32c6", "labels=site=lab1", "jobs=2", "good", "ci"):
            assert word in shown
        assert made.data["key"] not in shown


async def test_keys_are_found_and_revoked_by_the_beginning_of_their_id(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        keyring = b.served.control.keyring
        made = await keyring.make_key(Role.VIEWER, name="gone")
        other = await keyring.make_key(Role.VIEWER)
        begins = made.id[:8]
        found = await call(tmp, "keys", "list", f"aegis_sk_{begins}", "--json")
        assert [row["id"] for row in found.data["keys"]] == [made.id]
        revoked = await call(tmp, "keys", "revoke", f"aegis_sk_{begins}")
        assert (revoked.code, revoked.out) == (0, f"revoked {made.id} (gone)\n")
        rows = {row.id: row.revoked for row in await keyring.rows()}
        assert (rows[made.id], rows[other.id]) == (True, False)
        short = await call(tmp, "keys", "revoke", made.id[:1])
        assert (short.code, "[request.invalid]" in short.err) == (9, True)
        nobody = await call(tmp, "keys", "revoke", "zzzzzzzz")
        assert (nobody.code, "[key.not_found]" in nobody.err) == (8, True)


@pytest.mark.parametrize("verb", ["list", "revoke"])
async def test_a_whole_key_in_an_argument_is_refused_and_not_repeated(tmp: Path, verb: str) -> None:
    async with bench(tmp / "s") as b:
        made = await b.served.control.keyring.make_key(Role.VIEWER)
        ended = await call(tmp, "keys", verb, made.key)
        assert (ended.code, "[request.invalid]" in ended.err) == (9, True)
        assert made.key.rsplit("_", 1)[1] not in ended.err
        assert [row.revoked for row in await b.served.control.keyring.rows(prefix=made.id)] == [
            False
        ]


async def test_a_key_that_has_expired_is_refused_and_says_so(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        made = await b.served.control.keyring.make_key(Role.VIEWER, expires_in_s=-1)
        answer = await b.client(made.key).ask("GET", "/whoami")
        assert (answer.status, answer.error.code) == (401, "auth.key_wrong")
        assert "expired" in answer.error.message
        assert "expired" in (await call(tmp, "keys", "list", made.id)).out


@pytest.mark.parametrize(
    "words",
    [
        ["colours=red"],
        ["targets"],
        ["targets="],
        ["targets=ESP32"],
        ["labels=site"],
        ["boards=/dev/ttyUSB0"],
        ["channels=telnet"],
        ["jobs=0"],
        ["jobs=many"],
        ["jobs=1", "jobs=2"],
        ["jobs=99999"],
        ["targets=" + ",".join(f"esp{n}" for n in range(65))],
    ],
)
def test_a_limit_that_makes_no_sense_is_named(words: list[str]) -> None:
    with pytest.raises(BadRequest) as refused:
        key_limits.from_words(words)
    assert refused.value.facts["field"].startswith("limit")


def test_limits_are_kept_in_order_without_repeats() -> None:
    found = key_limits.from_words(["targets=esp32,esp32p4", "targets=esp32", "jobs=3"])
    assert found == {"targets": ("esp32", "esp32p4"), "jobs": ("3",)}
    assert (key_limits.max_jobs(found), key_limits.max_jobs({})) == (3, None)


def test_an_expiry_is_a_span_or_a_date() -> None:
    assert [seconds_until(text, option="--expires") for text in ("90s", "2h", "3d", "1w")] == [
        90,
        7200,
        3 * 86_400,
        7 * 86_400,
    ]
    at = datetime.fromtimestamp(time.time() + 1000)
    assert 900 < seconds_until(at.isoformat(), option="--expires") <= 1000
    for wrong in ("soon", "0d", "-1d", "2001-01-01", "5", "9999999d"):
        with pytest.raises(BadRequest):
            seconds_until(wrong, option="--expires")
