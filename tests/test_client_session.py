"""The way to an agent: grant, waiting, pins, signature, retries; and an agent that is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aegis_client import connector, placement
from aegis_client import control as control_api
from aegis_client.client import Client
from aegis_client.config import ClientConfig, TrustMode
from aegis_client.needs import ATTACH, START_BUILD
from aegis_client.project import scan
from aegis_client.reporter import Silent
from aegis_client.session import Session
from aegis_client.store import Store
from aegis_client.upload import upload
from aegis_client.wish import Wish
from aegis_links.certificate import Certificate
from aegis_protocol.errors import ErrorReply
from aegis_protocol.failures.agent import (
    AgentGone,
    AgentKeyChanged,
    AgentNotTrusted,
    AgentSignatureWrong,
    SessionOver,
    VersionMismatch,
)
from aegis_protocol.failures.http import (
    AgentOffline,
    ControlAnswerInvalid,
    JobCanceled,
    JobTimedOut,
    TargetNotAllowed,
    Unavailable,
)
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.signing import b64
from aegis_protocol.states import JobState
from client_stand import project
from fake_agent import FakeAgent
from fake_control import KEY, FakeControl
from waiting import until

WISH = Wish(needs=START_BUILD | ATTACH, target="esp32p4")
NO_AGENT = Reason(code="target.missing", detail="no agent builds for esp32p4", agents=("bench",))


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.reasons: list[Any] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def waiting(self, reasons: Any) -> None:
        self.reasons.append(tuple(reasons))


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    async with FakeControl.running() as running:
        yield running


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "BETWEEN_TRIES_S", 0.01)


def config_of(
    control: FakeControl, tmp: Path, trust: TrustMode = TrustMode.FIRST_USE
) -> ClientConfig:
    return ClientConfig(url=control.url, key=KEY, store=tmp / "store", trust=trust)


@asynccontextmanager
async def reached(
    control: FakeControl,
    tmp: Path,
    wish: Wish = WISH,
    trust: TrustMode = TrustMode.FIRST_USE,
    notes: Notes | None = None,
) -> AsyncIterator[Session]:
    async with Client.opened(config_of(control, tmp, trust)) as client:
        async with client.session(wish, notes or Notes()) as session:
            yield session


async def test_a_session_greets_pins_and_ends_its_job(control: FakeControl, tmp: Path) -> None:
    notes = Notes()
    async with reached(control, tmp, notes=notes) as session:
        assert session.hello.agent_id == control.agent.id
    assert control.agent.ended_jobs == [session.job_id]
    assert any("pinned" in note for note in notes.notes)
    assert control.canceled == []


async def test_a_second_meeting_needs_no_pin(control: FakeControl, tmp: Path) -> None:
    async with reached(control, tmp):
        pass
    notes = Notes()
    async with reached(control, tmp, trust=TrustMode.PINNED, notes=notes):
        pass
    assert not any("pinned" in note for note in notes.notes)


async def test_an_unknown_agent_is_refused_where_pins_are_asked_for(
    control: FakeControl, tmp: Path
) -> None:
    with pytest.raises(AgentNotTrusted):
        async with reached(control, tmp, trust=TrustMode.PINNED):
            pass
    assert control.offers == 0
    assert control.canceled == list(control.jobs)


async def test_a_control_that_shows_another_key_is_refused_before_the_offer(
    control: FakeControl, tmp: Path
) -> None:
    async with reached(control, tmp):
        pass
    control.offers = 0
    other = FakeAgent(control.agent.name)
    control.agent, mine = other, control.agent
    with pytest.raises(AgentKeyChanged) as caught:
        async with reached(control, tmp):
            pass
    assert caught.value.facts["known_agent_id"] == mine.id
    assert control.offers == 0
    assert other.source_bytes == 0
    await mine.close()


async def test_a_key_that_is_not_the_ids_is_refused(control: FakeControl, tmp: Path) -> None:
    other = FakeAgent("other")

    def swapped(grant: GrantReply) -> GrantReply:
        return grant.model_copy(update={"agent_key": other.key_text})

    control.change_grant = swapped
    with pytest.raises(AgentKeyChanged):
        async with reached(control, tmp):
            pass
    assert control.offers == 0
    await other.close()


async def test_a_swapped_fingerprint_is_refused_before_any_source(
    control: FakeControl, tmp: Path
) -> None:
    async def in_the_middle(sdp: str, signature: str) -> tuple[str, str]:
        lines = [
            f"a=fingerprint:sha-256 {Certificate.generate().fingerprint.pairs}"
            if line.startswith("a=fingerprint:")
            else line
            for line in sdp.split("\r\n")
        ]
        return "\r\n".join(lines), signature

    control.change_answer = in_the_middle
    with pytest.raises(AgentSignatureWrong):
        async with reached(control, tmp):
            pass
    assert control.agent.calls == []
    assert control.offers == 1, "a forged answer is not tried again"


async def test_a_signature_by_another_key_is_refused(control: FakeControl, tmp: Path) -> None:
    async def forged(sdp: str, signature: str) -> tuple[str, str]:
        return sdp, b64(FakeAgent().key.sign(b"anything"))

    control.change_answer = forged
    with pytest.raises(AgentSignatureWrong):
        async with reached(control, tmp):
            pass
    assert control.agent.calls == []
    assert not (tmp / "store" / "known_agents").exists(), (
        "an agent that proved nothing is not pinned"
    )


async def test_another_agent_than_the_one_asked_for_is_refused(
    control: FakeControl, tmp: Path
) -> None:
    with pytest.raises(ControlAnswerInvalid, match="was asked for"):
        async with reached(control, tmp, Wish(needs=WISH.needs, agent="lab7")):
            pass
    assert control.offers == 0


async def test_a_job_waits_with_its_reasons_and_goes_on_when_assigned(
    control: FakeControl, tmp: Path
) -> None:
    control.pending = (NO_AGENT,)
    notes = Notes()

    async def assign() -> None:
        await until(lambda: control.last_event_ids)
        await control.assign(next(iter(control.jobs)))

    assigning = asyncio.create_task(assign())
    async with reached(control, tmp, notes=notes) as session:
        assert session.job_id in control.jobs
    await assigning
    assert notes.reasons == [(NO_AGENT,)]
    assert len(control.jobs) == 1


async def test_a_job_that_waits_outlives_a_control_that_is_away(
    control: FakeControl, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "POLL_S", 0.05)
    monkeypatch.setattr(control_api, "_BACKOFF_S", (0.01, 0.01))
    control.pending = (NO_AGENT,)
    notes = Notes()
    away = Unavailable("the store does not answer").body()
    body = ErrorReply(error=away).model_dump_json().encode()

    async def be_away() -> None:
        await until(lambda: control.last_event_ids)
        control.failures = [(503, body, {})] * (2 * control_api.TRIES)
        await until(lambda: not control.failures)
        await control.assign(next(iter(control.jobs)))

    being_away = asyncio.create_task(be_away())
    async with reached(control, tmp, notes=notes) as session:
        assert [session.job_id] == list(control.jobs)
    await being_away
    told = [note for note in notes.notes if "the job waits, asking again" in note]
    assert len(told) >= 2 and "control.unavailable" in told[0]


async def test_waiting_ends_at_its_deadline_with_the_reasons(
    control: FakeControl, tmp: Path
) -> None:
    control.pending = (NO_AGENT,)
    with pytest.raises(JobTimedOut, match=r"target\.missing") as caught:
        async with reached(control, tmp, Wish(needs=WISH.needs, wait_s=0.2)):
            pass
    assert caught.value.facts["reasons"][0]["detail"] == NO_AGENT.detail
    assert control.canceled == list(control.jobs), "the job does not go on waiting"
    grants = [path for _, path in control.requests if path == "/grant/request"]
    assert len(grants) == 2, "one wait, not one for each try"


async def test_new_reasons_are_told_while_waiting(control: FakeControl, tmp: Path) -> None:
    control.pending = (NO_AGENT,)
    notes = Notes()
    busy = {"code": "agent.busy", "detail": "all slots are taken", "agents": []}

    async def change() -> None:
        await until(lambda: control.last_event_ids)
        job_id = next(iter(control.jobs))
        await control.tell(job_id, "state", state="pending", reasons=[busy])
        await until(lambda: len(notes.reasons) == 2)
        await control.assign(job_id)

    changing = asyncio.create_task(change())
    async with reached(control, tmp, notes=notes):
        pass
    await changing
    assert [reasons[0].code for reasons in notes.reasons] == ["target.missing", "agent.busy"]


async def test_a_job_that_somebody_cancels_while_it_waits_says_so(
    control: FakeControl, tmp: Path
) -> None:
    control.pending = (NO_AGENT,)

    async def cancel() -> None:
        await until(lambda: control.last_event_ids)
        await control.end(next(iter(control.jobs)), JobState.CANCELED)

    canceling = asyncio.create_task(cancel())
    with pytest.raises(JobCanceled):
        async with reached(control, tmp):
            pass
    await canceling


async def test_a_refused_offer_is_tried_again_with_a_fresh_grant(
    control: FakeControl, tmp: Path
) -> None:
    control.reject_offers = [AgentOffline("its link is down"), AgentOffline("its link is down")]
    async with reached(control, tmp) as session:
        assert control.jobs[session.job_id].grants == 3
    assert control.offers == 3
    assert len(control.jobs) == 1


async def test_the_third_refusal_is_final(control: FakeControl, tmp: Path) -> None:
    control.reject_offers = [AgentOffline("its link is down")] * 3
    with pytest.raises(AgentOffline):
        async with reached(control, tmp):
            pass
    assert control.offers == 3
    assert control.canceled == list(control.jobs)


async def test_what_cannot_get_better_is_not_tried_again(control: FakeControl, tmp: Path) -> None:
    control.agent.hello_error = VersionMismatch("another protocol")
    with pytest.raises(VersionMismatch):
        async with reached(control, tmp):
            pass
    control.agent.hello_error = None
    control.reject_offers = [TargetNotAllowed("not this target")]
    with pytest.raises(TargetNotAllowed):
        async with reached(control, tmp):
            pass
    assert control.offers == 2


async def test_what_the_agent_says_before_it_closes_is_what_the_user_hears(
    control: FakeControl, tmp: Path
) -> None:
    with pytest.raises(SessionOver):
        async with reached(control, tmp) as session:
            peer = control.agent.sessions[0]
            error = SessionOver("ten minutes are over").body().model_dump(mode="json")
            await peer.notify("session.closing", {"error": error})
            peer.closing.set()
            await session.task_ended("none")


async def test_a_session_survives_the_death_of_control(control: FakeControl, tmp: Path) -> None:
    async with reached(control, tmp) as session:
        await control.stop()
        await session.end_job()
        session.keep_job = True
    assert control.agent.ended_jobs == [session.job_id]


async def test_an_agent_that_control_has_lost_but_that_answers_is_kept(
    control: FakeControl, tmp: Path
) -> None:
    async with reached(control, tmp) as session:
        body = AgentGone("its link is down").body().model_dump(mode="json")
        await control.tell(session.job_id, "closed", error=body)
        await until(lambda: "link.measure" in control.agent.calls)
        assert session.connected
        assert len(control.agent.sessions) == 1
    assert control.agent.ended_jobs == [session.job_id]


async def test_a_kept_job_is_not_ended(control: FakeControl, tmp: Path) -> None:
    async with reached(control, tmp) as session:
        session.keep_job = True
    assert control.agent.ended_jobs == []
    again = Wish(needs=WISH.needs, job_id=session.job_id)
    async with reached(control, tmp, again) as second:
        assert second.job_id == session.job_id
    assert control.agent.ended_jobs == [], "who joins a job does not end it"


async def test_an_upload_takes_the_time_that_its_grant_gives_it(
    control: FakeControl, tmp: Path
) -> None:
    (project(tmp / "p") / "noise.bin").write_bytes(random.Random(1).randbytes(65_536))  # noqa: S311
    control.change_grant = lambda grant: grant.model_copy(update={"max_bandwidth_kbps": 400})
    async with reached(control, tmp) as session:
        began = time.monotonic()
        await upload(
            session.link.newest, scan(tmp / "p", Store.open(config_of(control, tmp))), Silent()
        )
        # 50,000 bytes a second; a quarter of that and a message more pass at once.
        assert time.monotonic() - began > 0.6
        assert session.failure is None
