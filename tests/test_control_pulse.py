"""Whether agents live: who is pinged when, whose silence counts, and how a link is closed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from aegis_control.link.link import Link
from aegis_control.link.pulse import Pulse
from aegis_control.link.registry import Links
from aegis_control.link.socket import Inbox, LinkSocket, framed
from aegis_control.metrics import Metrics
from aegis_control.store import agents
from aegis_protocol.control_link import Hello, JobCancel, JobOffer, Pong, Status
from aegis_protocol.failures.http import AgentOffline, LinkSuperseded
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WebSocketReader
from control_fixtures import Bench, bench, link_of
from waiting import until

SILENCE_S = 15.0
LOOK_S = 0.5
LOOKS = round(SILENCE_S / LOOK_S)
HELLO = Hello(
    protocol=1,
    agent_id="ag-1",
    public_key="",
    signature="",
    name="bench",
    version="1",
    slots=1,
    cpu_cores=1,
    memory_mb=1,
    clock=0,
)


class Wire(asyncio.Transport):
    """Takes what is written, and says whether it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.cut = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append(data)

    def abort(self) -> None:
        self.cut = True

    def is_closing(self) -> bool:
        return self.cut

    def get_write_buffer_size(self) -> int:
        return 0


class Watched:
    """One link under a pulse, and a clock that the test moves."""

    def __init__(self) -> None:
        self.socket, self.wire = LinkSocket(), Wire()
        loop = asyncio.get_running_loop()
        self.socket.inbox = Inbox(BaseProtocol(loop), 65_536, loop=loop)
        self.now_s = self.socket.inbox.heard_s = time.monotonic()
        self.socket.inbox.takes_note = False
        self.link = Link(self.socket, self.wire, HELLO, name="bench", epoch=1)
        self.link.begin(ping_within_s=0)
        self.link.listen()
        self.links = Links(Metrics(), on_change=lambda: None)
        self.links.add(self.link)
        self.pulse = Pulse(self.links, silence_s=SILENCE_S)

    def answer(self) -> None:
        """The agent is heard now."""
        self.socket.inbox.heard_s = self.now_s

    def look(self, *, after_s: float = LOOK_S) -> list[bytes]:
        """Let time pass; returns what is sent at the look after it."""
        self.now_s += after_s
        self.wire.written.clear()
        self.pulse.look(self.now_s)
        return list(self.wire.written)


async def test_an_agent_that_answers_is_pinged_three_times_in_the_time_of_silence() -> None:
    watched = Watched()
    pings = []
    for number in range(2 * LOOKS):
        if sent := watched.look():
            watched.answer()
            pings.append((number + 1) * LOOK_S)
            assert json.loads(sent[0][2:])["type"] == "ping"
    assert pings == [5, 10, 15, 20, 25, 30]


async def test_an_agent_that_says_nothing_is_cut_when_its_time_is_over_and_not_before() -> None:
    watched = Watched()
    watched.answer()
    for _ in range(LOOKS - 1):
        watched.look()
        assert not watched.wire.cut
    watched.look()
    watched.look()
    assert watched.wire.cut
    assert watched.link.end_cause == "silent"


async def test_frames_that_control_sends_are_no_word_of_the_agent() -> None:
    watched = Watched()
    watched.answer()
    pings = 0
    while not watched.wire.cut:
        pings += len(watched.look())
        if not watched.wire.cut:
            watched.link.send(JobCancel(job_id="j"))
            watched.link._sent_s = watched.now_s  # the test's clock
    assert pings >= 2
    assert watched.link.end_cause == "silent"


async def test_no_ping_is_sent_where_both_talk() -> None:
    watched = Watched()
    for _ in range(60):
        watched.answer()
        watched.link._sent_s = watched.now_s
        assert watched.look() == []


async def test_a_control_that_stood_still_holds_nobodys_silence_against_it() -> None:
    watched = Watched()
    watched.answer()
    watched.look(after_s=3 * SILENCE_S)
    assert not watched.wire.cut
    for _ in range(LOOKS - 2):
        watched.look()
        assert not watched.wire.cut
    for _ in range(3):
        watched.look()
    assert watched.wire.cut


def read(inbox: Inbox, *frames: str) -> None:
    """Have `inbox` get these frames as a server reads them."""
    reader = WebSocketReader(inbox, 1 << 18, compress=False, decode_text=True)
    for frame in frames:
        sent = framed(frame)
        assert sent[1] < 126
        reader.feed_data(sent[:1] + bytes((sent[1] | 0x80,)) + bytes(4) + sent[2:])


async def test_a_pong_is_noted_and_not_kept_once_the_agent_is_known() -> None:
    watched = Watched()
    inbox = watched.socket.inbox
    inbox.heard_s = 0.0
    read(inbox, Pong(time=time.time()).model_dump_json())
    assert inbox.heard_s > 0
    read(inbox, Status(paused="a frame like others").model_dump_json())
    assert "a frame like others" in (await inbox.read()).data


@pytest.mark.parametrize(
    "text",
    ['{"type":"pong","time":"now"}', '{"time":1.0,"type":"pong"}', '{"type":"pong","time":1.0} '],
)
async def test_what_is_not_just_a_pong_is_kept(text: str) -> None:
    watched = Watched()
    read(watched.socket.inbox, text)
    assert (await watched.socket.inbox.read()).data == text


async def test_a_pong_before_the_hello_is_no_life() -> None:
    inbox = Watched().socket.inbox
    inbox.takes_note = False
    pong = Pong(time=time.time()).model_dump_json()
    read(inbox, pong)
    assert (await inbox.read()).data == pong


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
async def test_a_frame_is_framed_by_its_length(size: int) -> None:
    inbox = Watched().socket.inbox
    WebSocketReader(inbox, 1 << 18, compress=False, decode_text=True).feed_data(framed("x" * size))
    assert (await inbox.read()).data == "x" * size


async def test_what_control_has_no_time_to_read_is_no_silence(tmp: Path) -> None:
    async with bench(tmp / "s", link_timeout_s=0.5) as b:
        agent = await b.agent()
        link = link_of(b.served, agent.id)
        async with b.served.control.database.write():  # the frame can't be dealt with meanwhile
            await agent.send(Status(paused="dealt with late"))
            await asyncio.sleep(1.0)
        await until(lambda: link.paused == "dealt with late")
        assert b.served.control.links.find(agent.id) is link


async def test_an_agent_that_takes_nothing_is_told_to_be_offline_in_the_end(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        link = link_of(b.served, agent.id)
        offer = JobOffer(job_id="j", jti="t", grant="g" * 8192, sdp="v" * 16_384)
        with pytest.raises(AgentOffline, match="does not keep up"):
            for _ in range(4_000):
                link.send(offer)


async def test_a_closed_link_is_told_why_and_cut_if_the_agent_does_not_close(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        polite, mute = await b.agent("polite"), await b.agent("mute")
        for agent in (polite, mute):
            link_of(b.served, agent.id).close(LinkSuperseded("a test"), cause="superseded")
        assert await polite.refusal() == "link.superseded"
        await until(lambda: ended(b, "superseded") == 2)
        assert not b.served.control.links.all()


async def test_a_frame_on_a_link_that_is_being_closed_does_nothing(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        link = link_of(b.served, agent.id)
        link.close(LinkSuperseded("a test"), cause="superseded")
        with pytest.raises(AgentOffline):
            link.send(JobCancel(job_id="j"))
        await agent.send(Status(paused="too late"))
        await until(lambda: ended(b, "superseded") == 1)
        assert link.paused is None


async def test_when_an_agent_was_seen_is_written_in_steps_and_when_its_link_ends(tmp: Path) -> None:
    async with bench(tmp / "s", link_timeout_s=0.6) as b:
        agent = await b.agent()
        answering = asyncio.create_task(agent.receive())
        linked = await seen(b, agent.id)
        link = link_of(b.served, agent.id)
        await until(lambda: link.heard_at > linked + 0.3)
        assert await seen(b, agent.id) == linked
        link.noted_at -= 60
        await until(lambda: link.noted_at > linked, within_s=10)
        stepped = await seen(b, agent.id)
        assert stepped == pytest.approx(link.noted_at)
        await until(lambda: link.heard_at > stepped + 0.3)
        answering.cancel()
        await agent.leave()
        await until(lambda: ended(b, "closed") == 1)
        while (last := await seen(b, agent.id)) == stepped:
            await asyncio.sleep(0.01)
        assert last > stepped + 0.2


async def test_when_an_agent_was_seen_is_written_when_control_stops(tmp: Path) -> None:
    async with bench(tmp / "s", link_timeout_s=0.6) as b:
        agent = await b.agent()
        linked = await seen(b, agent.id)
        link = link_of(b.served, agent.id)
        answering = asyncio.create_task(agent.receive())
        await until(lambda: link.heard_at > linked + 2)  # it looks each second who is here
        answering.cancel()
    async with bench(tmp / "s") as b:
        assert await seen(b, agent.id) > linked + 1


async def seen(b: Bench, agent_id: str) -> float:
    """When the agent was last heard, as the store has it."""
    async with b.served.control.database.read() as conn:
        record = await agents.get(conn, agent_id)
    assert record is not None and record.last_seen is not None
    return record.last_seen


def ended(b: Bench, cause: str) -> int:
    """How many links ended so."""
    found = b.served.control.metrics.registry.get_sample_value(
        "aegis_links_ended_total", {"cause": cause}
    )
    return int(found or 0)
