"""Control's API from the client's side: events that break off, settings, roots, exit codes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aegis_client.failures
import aegis_protocol.failures  # registers every code
import pytest
from aegis_client import records as records_module
from aegis_client import signals as signals_module
from aegis_client.accounts import Account
from aegis_client.client import Client
from aegis_client.config import ClientConfig, checked_url, load
from aegis_client.control import ControlClient
from aegis_client.exit_codes import MEANINGS, ROWS, ExitCode, exit_code
from aegis_client.failures import ConfigInvalid, StoreDamaged, StoreNotFound, UrlInsecure
from aegis_client.records import TaskRecord, TaskRecords
from aegis_client.signals import Signals
from aegis_client.sse import MAX_EVENT_BYTES, ServerEvent, SseParser
from aegis_client.store import Store
from aegis_protocol.errors import known_codes
from aegis_protocol.failures.http import ControlAnswerInvalid, JobNotFound, JobOver
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.ids import new_id
from aegis_protocol.states import JobState
from fake_control import KEY, FakeControl
from waiting import until

STREAM = (
    b': a comment\r\nid: 7\r\nevent: state\r\ndata: {"a":\r\ndata:  1}\r\n\r\n'
    b"id: 8\ndata: x\n\nevent: empty\n\n"
)
REQUEST = GrantRequest(
    peer_fingerprint="sha-256:" + ":".join(["AB"] * 32), required_channels=("espctl",)
)


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    async with FakeControl.running() as running:
        yield running


@pytest.fixture
async def client(control: FakeControl, tmp: Path) -> AsyncIterator[ControlClient]:
    config = ClientConfig(url=control.url, key=KEY, store=tmp / "store")
    async with Client.opened(config) as opened:
        yield opened.control


@pytest.mark.parametrize("size", range(1, len(STREAM)))
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    parser = SseParser()
    pieces = [STREAM[n : n + size] for n in range(0, len(STREAM), size)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert events == [ServerEvent("7", "state", '{"a":\n 1}'), ServerEvent("8", "message", "x")]
    assert parser.last_id == "8"


def test_an_event_without_end_is_refused() -> None:
    parser = SseParser()
    with pytest.raises(ControlAnswerInvalid):
        for _ in range(MAX_EVENT_BYTES // 65_536 + 2):
            parser.feed(b"data: " + b"x" * 65_536)


async def test_a_broken_stream_goes_on_after_the_last_event(
    control: FakeControl, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "_BACKOFF_S", (0.01,))
    job_id = (await client.request_grant(REQUEST)).job_id
    async with Signals.listening(client, job_id) as signals:
        await signals.wait_connected()
        await control.tell(job_id, "state", state="lost")
        await signals.until(lambda: signals.state is JobState.LOST or None)
        control.cut_streams()
        answer = {"jti": "j1", "sdp": "v=0", "signature": "s"}
        await control.tell(job_id, "answer", **answer)
        async with asyncio.timeout(5):
            assert (await signals.answer("j1")).sdp == "v=0"
    assert control.last_event_ids[:2] == [None, "1"]


async def test_a_control_that_restarts_is_found_again(
    control: FakeControl, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "_BACKOFF_S", (0.01,))
    job_id = (await client.request_grant(REQUEST)).job_id
    async with Signals.listening(client, job_id) as signals:
        await signals.wait_connected()
        port = int(control.url.rpartition(":")[2])
        await control.stop()
        await control.start(port)
        await until(lambda: len(control.last_event_ids) > 1)
        await control.end(job_id, JobState.SUCCEEDED)
        async with asyncio.timeout(5):
            with pytest.raises(JobOver):
                await signals.answer("never")


async def test_events_that_this_version_does_not_know_are_passed_over(
    control: FakeControl, client: ControlClient
) -> None:
    job_id = (await client.request_grant(REQUEST)).job_id
    async with Signals.listening(client, job_id) as signals:
        await signals.wait_connected()
        await control.tell(job_id, "weather", rain=True)
        await control.tell(job_id, "assigned", agent_id="a", agent_name="a")
        async with asyncio.timeout(5):
            await signals.until(lambda: signals.assigned or None)


async def test_a_stream_of_a_job_that_is_not_there_ends_for_good(client: ControlClient) -> None:
    async with Signals.listening(client, "nothing") as signals:
        with pytest.raises(JobNotFound):
            await signals.wait_connected()


async def test_what_is_retried_is_retried_with_the_same_idempotency_key(
    control: FakeControl, client: ControlClient
) -> None:
    control.failures = [(503, b"", {}), (503, b"", {})]
    await client.request_grant(REQUEST, idempotency_key="once")
    keys = [headers.get("Idempotency-Key") for headers in control.headers]
    assert keys == ["once"] * 3
    assert len(control.jobs) == 1


async def test_the_key_stands_in_a_header_and_never_in_an_address(
    control: FakeControl, client: ControlClient
) -> None:
    await client.whoami()
    assert control.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert all(KEY not in path for _, path in control.requests)
    account = Account("http://x", KEY, "", "")
    assert KEY not in repr(account) + repr(ClientConfig(key=KEY))


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.0.0.9", "http://[::1]:8470", "https://example.org/x/"]
)
def test_these_urls_are_fine(url: str) -> None:
    assert checked_url(url, allow_insecure=False) == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["control", "ftp://x", "https://", "https://u:p@x", "https://x?a=1", "http://[::1"]
)
def test_these_are_no_urls_of_control(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        checked_url(url, allow_insecure=True)


def test_plain_http_to_elsewhere_needs_to_be_allowed() -> None:
    env = {"ESPCTL_URL": "http://control.lan:8470"}
    with pytest.raises(UrlInsecure):
        load(env)
    assert load({**env, "ESPCTL_ALLOW_INSECURE": "1"}).url == "http://control.lan:8470"


def test_empty_settings_are_unset_and_the_client_has_its_own_before_the_shared_ones() -> None:
    assert load({"MCP_AUTH_SECRET": "", "ESPCTL_URL": ""}).key is None
    both = load({"MCP_AUTH_SECRET": "a", "ESPCTL_KEY": "b", "CONTROL_BASE_URL": "https://c"})
    assert (both.key, both.key_setting, both.url) == ("b", "ESPCTL_KEY", "https://c")


def test_a_damaged_store_is_named_by_its_file(tmp: Path) -> None:
    store = Store.open(ClientConfig(store=tmp / "store", store_named=True))
    (store.root / "installation.json").write_text("{")
    with pytest.raises(StoreDamaged, match=r"installation\.json"):
        store.installation_id()


def test_a_store_is_made_only_where_its_parent_is(tmp: Path) -> None:
    with pytest.raises(StoreNotFound, match="cannot find store at"):
        Store.open(ClientConfig(store=tmp / "a" / "b", store_named=True))
    (tmp / "file").write_text("")
    with pytest.raises(StoreNotFound):
        Store.open(ClientConfig(store=tmp / "file", store_named=True))
    assert Store.open(ClientConfig(store=tmp / "x" / "y")).root.stat().st_mode & 0o777 == 0o700


def test_records_are_bounded_and_those_of_another_control_are_not_shown(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "MAX_RECORDS", 6)
    store = Store.open(ClientConfig(store=tmp / "store"))
    records = TaskRecords(store, "https://one")
    for n in range(9):
        records.keep(
            TaskRecord(
                task_id=new_id(),
                job_id="j",
                kind="build",
                url="https://one",
                agent_id="a",
                agent_name="a",
                project_dir=f"/p{n % 2}",
                started_at=n,
            )
        )
    assert len(records.all()) == 6
    last = records.last_build("/p1")
    assert last is not None
    assert last.started_at == 7
    assert TaskRecords(store, "https://two").all() == []


def test_every_error_has_an_exit_code_and_every_row_serves_one() -> None:
    ours = ("aegis_protocol.failures.", "aegis_client.")
    codes = {code for code, cls in known_codes().items() if cls.__module__.startswith(ours)}
    without = {code for code in codes if exit_code(code) is ExitCode.INTERNAL}
    assert without == set()
    assert exit_code("something.new") is ExitCode.INTERNAL
    assert set(MEANINGS) == set(ExitCode)
    exact = {row for row in ROWS if not row.endswith(".")}
    assert exact <= codes, "a row for a code that does not exist"
    assert aegis_client.failures.UsageInvalid.code in codes
    assert aegis_protocol.failures is not None


def test_the_docs_have_the_same_exit_codes() -> None:
    text = (Path(__file__).parents[1] / "docs" / "espctl.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in text
