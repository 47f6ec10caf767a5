"""How often an address or a key may ask, and how often a secret may be wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
from aegis_control.config import ConfigInvalid
from aegis_control.config_sources import load
from aegis_control.rate_limits import RateLimits, Windows, network_of
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import RateLimited
from control_fixtures import MCP, Client, bench, config
from structlog.testing import capture_logs

Asker = TypeVar("Asker")


class Clock:
    """Stands at a time until it is moved on."""

    def __init__(self) -> None:
        self.now_s = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    standing = Clock()
    monkeypatch.setattr(time, "time", standing)
    return standing


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


def _rates(*, per_address: str = "off", per_key: str = "off", failures: str = "off") -> RateLimits:
    return RateLimits(per_address=per_address, per_key=per_key, failures=failures)


def _refused(call: Callable[[Asker], None], asker: Asker) -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        call(asker)
    return refused.value


@pytest.mark.parametrize("pause_s", [0.0, 0.7, 13.0])
def test_whoever_waits_as_long_as_it_was_told_is_admitted_again(
    clock: Clock, pause_s: float
) -> None:
    rates = _rates(per_address="10/minute")
    for _ in range(5):
        for _ in range(10):
            clock.now_s += pause_s
            try:
                rates.admit("192.0.2.1")
            except RateLimited:
                break
        else:
            if pause_s > 6:
                return  # slower than the limit: never refused
        refused = _refused(_until_refused, rates)
        assert 1 <= refused.facts["retry_after_s"] <= 66
        clock.now_s += refused.facts["retry_after_s"]
        rates.admit("192.0.2.1")


def _until_refused(rates: RateLimits) -> None:
    for _ in range(11):
        rates.admit("192.0.2.1")


def test_about_the_limit_passes_in_a_window_and_never_half_as_much_again(clock: Clock) -> None:
    rates = _rates(per_key="20/minute")
    passed = 0
    for _ in range(600):
        clock.now_s += 0.1
        try:
            rates.count_key("k")
            passed += 1
        except RateLimited:
            pass
    assert 20 <= passed <= 30, "two counters estimate the window that slides"
    rates.count_key("another")


def test_addresses_are_told_apart_and_a_v6_network_is_one(clock: Clock) -> None:
    rates = _rates(per_address="1/hour")
    rates.admit("2001:db8:1:2::1")
    assert _refused(rates.admit, "2001:db8:1:2:ffff::9").facts["scope"] == "address"
    rates.admit("2001:db8:1:3::1")
    rates.admit("192.0.2.1")
    _refused(rates.admit, "::ffff:192.0.2.1")
    rates.admit("192.0.2.2")


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unknown" * 100, ("unknown" * 100)[:64]),
    ],
)
def test_what_counts_as_one_caller(address: str, caller: str) -> None:
    assert network_of(address) == caller


def test_a_flood_of_addresses_needs_no_more_memory_than_there_are_windows() -> None:
    windows = Windows(100)
    for n in range(10_000):
        windows.acquire_sliding_window_entry(f"caller {n}", 5, 60)
    assert len(windows) == 100
    assert windows.get("caller 9999") == 1


def test_failures_stop_the_guessing_and_nothing_else(clock: Clock) -> None:
    rates = _rates(failures="3/minute")
    for _ in range(3):
        rates.before_secret("192.0.2.1")
        rates.failed("192.0.2.1")
    refused = _refused(rates.before_secret, "192.0.2.1")
    assert (refused.facts["scope"], refused.facts["limit"]) == ("failures", "3/minute")
    rates.before_secret("192.0.2.2")
    rates.before_link("192.0.2.1")
    rates.admit("192.0.2.1")


def test_an_address_with_an_enrolled_agent_may_open_links_whatever_its_neighbours_do(
    clock: Clock,
) -> None:
    rates = _rates(failures="3/minute")
    for _ in range(3):
        rates.link_failed("192.0.2.1")
    assert _refused(rates.before_link, "192.0.2.1").facts["scope"] == "links"
    rates.link_proven("192.0.2.1")
    rates.before_link("192.0.2.1")


@pytest.mark.parametrize("rate", ["30", "0/minute", "30/fortnight", "many", "30/minute; 5/second"])
def test_a_rate_that_is_none_is_refused_at_start_by_its_name(
    rate: str, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_CONFIG_DIR", str(tmp))
    monkeypatch.setenv("AEGIS_RATE_FAILURES", rate)
    with pytest.raises(ConfigInvalid, match=r"AEGIS_RATE_FAILURES.*30/minute"):
        load()
    assert config(tmp, rate_failures="off").rate_failures == "off"


async def test_a_guesser_is_stopped_before_the_next_key_is_looked_up(tmp: Path) -> None:
    async with bench(tmp / "s", rate_failures="3/hour") as b:
        good, guesser = b.client(), b.client("aegis_sk_aaaaaaaa_" + "a" * 52)
        for _ in range(3):
            assert (await guesser.ask("GET", "/whoami")).status == 401
        for client in (guesser, good):  # who it is does not matter: nothing was looked up
            refused = await client.ask("GET", "/whoami")
            assert (refused.status, refused.error.code) == (429, "request.rate_limited")
            assert refused.error.facts["scope"] == "failures"
            assert int(refused.headers["Retry-After"]) == refused.error.facts["retry_after_s"]
        enroll = b.machine().enroll_request().model_dump(mode="json")
        assert (await b.client(None).ask("POST", "/agents/enroll", enroll)).status == 429
        assert (await good.ask("GET", "/health")).status == 200


async def test_a_key_that_was_revoked_or_is_over_is_no_guess(tmp: Path) -> None:
    async with bench(tmp / "s", rate_failures="1/hour") as b:
        over = await b.served.control.keyring.make_key(Role.VIEWER, expires_in_s=-1)
        client = b.client(over.key)
        for _ in range(3):
            assert (await client.ask("GET", "/whoami")).status == 401
        assert (await b.client().ask("GET", "/whoami")).status == 200


@pytest.mark.parametrize("kind", ["token", "grant"])
async def test_guessing_tokens_and_grants_is_limited_as_keys_are(tmp: Path, kind: str) -> None:
    async with bench(tmp / "s", rate_failures="2/hour") as b:
        client = b.client(None)
        if kind == "token":
            body = b.machine().enroll_request("guessed").model_dump(mode="json")
            path, headers, wrong = "/agents/enroll", {}, 403
        else:
            body = {"sdp": "v=0", "type": "offer"}
            path, wrong = "/signaling/x/offer", 401
            headers = {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30.c2ln"}
        statuses = [
            (await client.ask("POST", path, body, headers=headers)).status for _ in range(3)
        ]
        assert statuses == [wrong, wrong, 429]


async def test_a_key_has_its_share_and_another_has_its_own(tmp: Path) -> None:
    async with bench(tmp / "s", rate_per_key="2/hour") as b:
        one, other = await b.client_of(Role.VIEWER), await b.client_of(Role.VIEWER)
        statuses = [(await one.ask("GET", "/whoami")).status for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        refused = await one.ask("GET", "/whoami")
        assert (refused.error.facts["scope"], refused.error.facts["limit"]) == ("key", "2/hour")
        assert "Retry-After" in refused.headers
        assert (await other.ask("GET", "/whoami")).status == 200


async def test_an_address_has_its_share_whatever_it_asks_for_and_pages_may_read_why(
    tmp: Path,
) -> None:
    page = "https://app.example.org"
    async with bench(tmp / "s", rate_per_address="3/hour", allowed_origins=page) as b:
        client = b.client(None)
        for path in ("/openapi.json", "/nothing", "/whoami"):
            assert (await client.ask("GET", path)).status in (200, 404, 401)
        with capture_logs() as logs:
            for _ in range(20):
                refused = await client.ask("GET", "/nothing", headers={"Origin": page})
                assert refused.status == 429
        assert refused.headers["Access-Control-Allow-Origin"] == page
        assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]
        told = [e for e in logs if e["log_level"] != "debug" and e["part"] != "audit"]
        assert [entry["event"] for entry in told] == ["rate.exceeded"], "a flood fills no log"
        assert (await client.ask("GET", "/health")).status == 200
        agent = b.machine()
        with pytest.raises(AssertionError):
            await agent.enroll()


async def test_forwarded_addresses_are_told_apart_only_behind_a_trusted_proxy(tmp: Path) -> None:
    for proxies, expected in (("127.0.0.0/8", [200, 200, 429]), ("", [200, 429, 429])):
        settings = {"rate_per_address": "1/hour", "trusted_proxies": proxies}
        async with bench(tmp / f"s{len(proxies)}", **settings) as b:
            statuses = []
            for hops in ("192.0.2.1", "192.0.2.2", "6.6.6.6, 192.0.2.1"):
                headers = {"X-Forwarded-For": hops}
                statuses.append(
                    (await b.client(None).ask("GET", "/openapi.json", headers=headers)).status
                )
            assert statuses == expected


async def test_links_that_are_not_proven_are_limited_until_an_agent_comes_from_there(
    tmp: Path,
) -> None:
    async with bench(tmp / "s", rate_failures="2/hour") as b:
        enrolled = b.machine("good")
        await enrolled.enroll()
        stranger = b.machine("stranger")
        for _ in range(2):
            await stranger.send_hello()
            assert await stranger.refusal() == "link.refused"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await stranger.open()
        assert refused.value.status == 429
        assert refused.value.headers is not None and refused.value.headers["Retry-After"]
        assert (await b.client().ask("GET", "/whoami")).status == 200, "keys are counted apart"


async def test_a_stranger_is_limited_whatever_version_it_speaks(tmp: Path) -> None:
    async with bench(tmp / "s", rate_failures="2/hour") as b:
        stranger = b.machine("stranger")
        for _ in range(2):
            await stranger.send_hello(protocol=1_000)
            assert await stranger.refusal() == "link.refused"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await stranger.open()
        assert refused.value.status == 429


async def test_an_enrolled_agent_is_not_kept_out_by_a_broken_neighbour(tmp: Path) -> None:
    async with bench(tmp / "s", rate_failures="2/hour", rate_per_address="2/hour") as b:
        agent = await b.agent()
        stranger = b.machine("stranger")
        for _ in range(4):
            await stranger.send_hello()
            assert await stranger.refusal() == "link.refused"
        for _ in range(3):
            await agent.leave()
            await agent.link()


async def test_one_address_holds_only_so_many_links_that_say_no_hello(tmp: Path) -> None:
    async with bench(tmp / "s", connect_timeout_s=30) as b:
        silent = [b.machine(f"silent-{n}") for n in range(64)]
        await asyncio.gather(*(machine.open() for machine in silent))
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await b.machine("late").open()
        assert refused.value.status == 429
        await silent[0].leave()
        async with asyncio.timeout(5):
            while True:
                try:
                    await b.machine("later").open()
                    break
                except aiohttp.WSServerHandshakeError:
                    await asyncio.sleep(0.02)


async def test_the_local_socket_has_no_limits(tmp: Path) -> None:
    settings = {"rate_per_key": "1/hour", "rate_per_address": "1/hour"}
    async with bench(tmp / "s", **settings) as b:
        connector = aiohttp.UnixConnector(path=str(b.served.socket_path))
        async with aiohttp.ClientSession(connector=connector) as session:
            client = Client(session, "http://control", MCP)
            for _ in range(5):
                assert (await client.ask("GET", "/services/keys")).status == 200
