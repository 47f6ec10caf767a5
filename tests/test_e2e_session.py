"""What the agent holds to when a peer does not behave, or wants much: raw peers of our own make."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_links.rpc import RpcPeer
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES, ChannelName
from aegis_protocol.errors import AegisError, ErrorBody
from aegis_protocol.fingerprint import Fingerprint
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.ids import public_id
from aegis_protocol.signing import dtls_statement, unb64, verified
from fixtures_platformio import platformio_home
from stand import Client, Stand, a_stand, copy_project
from waiting import until

__all__ = ["platformio_home"]

pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")


@pytest.fixture(scope="module")
def house(platformio_home: Path) -> Iterator[tuple[Stand, Client]]:
    with a_stand(platformio_home) as stand:
        stand.agent(slots=4)
        yield stand, stand.client()


class Peer:
    """A client by hand: what espctl does, step by step, with room to do it wrong."""

    def __init__(self, stand: Stand, key: str, http: aiohttp.ClientSession) -> None:
        self._stand, self._http = stand, http
        self._headers = {"Authorization": f"Bearer {key}"}
        self.certificate = Certificate.generate()
        self.grant: GrantReply

    async def ask(self, channels: list[str], **more: Any) -> dict[str, Any]:
        body = {
            "peer_fingerprint": str(self.certificate.fingerprint),
            "required_channels": channels,
            **more,
        }
        status, reply = await self._post("/grant/request", body, self._headers)
        if status == 200:
            self.grant = GrantReply.model_validate(reply)
        return {"status": status, **reply}

    async def offer(self, sdp: str) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.grant.grant}"}
        path = f"/signaling/{self.grant.job_id}/offer"
        return await self._post(path, {"sdp": sdp, "type": "offer"}, headers)

    async def event(self, *types: str, jti: str, within_s: float = 10) -> dict[str, Any]:
        """The first event of one of `types` for the connection `jti`."""
        url = f"{self._stand.url}/signaling/{self.grant.job_id}/events"
        async with (
            asyncio.timeout(within_s),
            self._http.get(url, headers={**self._headers, "Last-Event-ID": "0"}) as stream,
        ):
            async for line in stream.content:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if event["type"] in types and event.get("jti") == jti:
                        assert isinstance(event, dict)
                        return event
        raise AssertionError(f"none of {types}")

    async def cancel(self) -> None:
        """Give the slot back; a job that is over already answers something else."""
        url = f"{self._stand.url}/jobs/{self.grant.job_id}"
        async with self._http.delete(url, headers=self._headers):
            pass

    @asynccontextmanager
    async def connected(self, channels: list[ChannelName]) -> AsyncIterator[PeerLink]:
        async with PeerLink.offering(self.certificate, channels=channels) as link:
            status, reply = await self.offer(link.offer_sdp)
            assert status == 202, reply
            answer = await self.event("answer", jti=reply["jti"])
            fingerprint = Fingerprint.parse(
                re.search(r"a=fingerprint:(sha-256 \S+)", answer["sdp"]).group(1)  # type: ignore[union-attr]
            )
            assert public_id(unb64(self.grant.agent_key)) == self.grant.agent_id
            statement = dtls_statement(
                self.grant.agent_id,
                self.grant.job_id,
                reply["jti"],
                self.certificate.fingerprint.digest,
                fingerprint.digest,
            )
            signature = unb64(answer["signature"])
            assert verified(unb64(self.grant.agent_key), signature, statement)
            await link.accept_answer(answer["sdp"], expected_fingerprint=fingerprint)
            await link.opened(deadline_s=10)
            yield link

    async def _post(
        self, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        async with self._http.post(self._stand.url + path, json=body, headers=headers) as reply:
            return reply.status, await reply.json()


@pytest.fixture
async def peer(house: tuple[Stand, Client]) -> AsyncIterator[Peer]:
    stand, _ = house
    key = await asyncio.to_thread(stand.key, "flasher")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        made = Peer(stand, key, http)
        yield made
        await made.cancel()


HELLO = {"protocol": PROTOCOL_VERSION, "client": "test/1"}


async def test_a_channel_that_was_not_granted_is_closed_and_named_and_the_others_go_on(
    peer: Peer,
) -> None:
    assert (await peer.ask(["espctl"]))["status"] == 200
    heard: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def listen(method: str, params: dict[str, Any]) -> None:
        await heard.put((method, params))

    names = [ChannelName.ESPCTL, ChannelName.FIRMWARE]
    async with (
        peer.connected(names) as link,
        RpcPeer.over(link.channel(ChannelName.ESPCTL), on_notification=listen) as rpc,
    ):
        async with asyncio.timeout(5):
            method, params = await heard.get()
        assert method == "channel.rejected"
        error = ErrorBody.model_validate(params["error"])
        assert (error.code, error.message) == (
            "channel.not_granted",
            "Channel firmware was rejected",
        )
        async with asyncio.timeout(5):
            while not link.channel(ChannelName.FIRMWARE).closed:
                await asyncio.sleep(0.01)
        greeted = await rpc.request("session.hello", HELLO, deadline_s=5)
        assert greeted["channels"] == ["espctl"]
        await rpc.request("job.end", {}, deadline_s=5)


async def test_an_action_that_the_grant_lacks_is_refused_and_logged(
    peer: Peer, house: tuple[Stand, Client]
) -> None:
    assert (await peer.ask(["espctl"], actions=["build.read"]))["status"] == 200
    async with (
        peer.connected([ChannelName.ESPCTL]) as link,
        RpcPeer.over(link.channel(ChannelName.ESPCTL)) as rpc,
    ):
        with pytest.raises(AegisError) as early:
            await rpc.request("boards.list", {}, deadline_s=5)
        await rpc.request("session.hello", HELLO, deadline_s=5)
        params = {"plan_id": "x", "target": "esp32p4"}
        with pytest.raises(AegisError) as refused:
            await rpc.request("build.start", params, deadline_s=5)
        with pytest.raises(AegisError) as unknown:
            await rpc.request("agent.shutdown", {}, deadline_s=5)
        await rpc.request("job.end", {}, deadline_s=5)
    assert early.value.code == "action.not_granted"
    assert refused.value.code == "action.not_granted"
    assert refused.value.facts["action"] == "build.run"
    assert unknown.value.code == "method.unknown"
    stand, _ = house
    assert "action.refused" in (stand.folder / "agent.log").read_text()


async def test_a_grant_opens_one_connection_and_a_repeat_gets_the_same_answer(peer: Peer) -> None:
    assert (await peer.ask(["espctl"]))["status"] == 200
    async with PeerLink.offering(peer.certificate, channels=[ChannelName.ESPCTL]) as link:
        _, first = await peer.offer(link.offer_sdp)
        answer = await peer.event("answer", jti=first["jti"])
        status, _ = await peer.offer(link.offer_sdp)
        assert status == 202
    async with PeerLink.offering(peer.certificate, channels=[ChannelName.ESPCTL]) as another:
        status, reply = await peer.offer(another.offer_sdp)
        if status == 202:
            refused = await peer.event("rejected", jti=first["jti"])
            assert refused["error"]["code"] == "grant.used"
        else:
            assert reply["error"]["code"] == "grant.used"
    assert answer["sdp"]


async def test_an_offer_of_another_certificate_is_refused(peer: Peer) -> None:
    assert (await peer.ask(["espctl"]))["status"] == 200
    async with PeerLink.offering(Certificate.generate(), channels=[ChannelName.ESPCTL]) as link:
        status, reply = await peer.offer(link.offer_sdp)
        if status == 202:
            refused = await peer.event("rejected", jti=reply["jti"])
            assert refused["error"]["code"] == "sdp.fingerprint_mismatch"
        else:
            assert reply["error"]["code"] == "sdp.fingerprint_mismatch"


async def test_an_offer_with_two_fingerprints_is_refused(peer: Peer) -> None:
    assert (await peer.ask(["espctl"]))["status"] == 200
    other = Certificate.generate().fingerprint
    async with PeerLink.offering(peer.certificate, channels=[ChannelName.ESPCTL]) as link:
        sdp = link.offer_sdp.rstrip() + f"\r\na=fingerprint:sha-256 {other.pairs}\r\n"
        status, reply = await peer.offer(sdp)
    assert status == 400
    assert reply["error"]["code"] == "sdp.fingerprint_ambiguous"


async def test_a_large_download_never_fills_the_send_queue(
    house: tuple[Stand, Client], tmp_path: Path
) -> None:
    stand, client = house
    project = await asyncio.to_thread(copy_project, "big", tmp_path)
    _add_ballast(project, mebibytes=4)
    words = ("build", str(project), "--target", "esp32p4", "--output", str(tmp_path / "out"))
    started = time.time()
    (await asyncio.to_thread(client, *words, "--json")).expect()
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert max(sizes) > 4 * 1024 * 1024

    def large() -> list[int]:
        """What the sessions that sent much had waiting at most; told when a session is over."""
        return [
            event["buffered_high_water"]
            for event in _log(stand.folder / "agent.log")
            if event["event"] == "session.closed" and event["buffered_high_water"] > 16_384
        ]

    marks = await until(large, within_s=20)
    assert max(marks) <= SEND_QUEUE_CAP_BYTES
    assert time.time() - started < 60


def _add_ballast(project: Path, *, mebibytes: int) -> None:
    """Debug bytes in the ELF: large to send, quick to build."""
    (project / "ballast.bin").write_bytes(bytes(range(256)) * (4096 * mebibytes + 1))
    # In a file of its own it would be dropped: --gc-sections keeps what belongs to used code.
    with (project / "src" / "main.c").open("a") as source:
        source.write(
            '__asm__(".pushsection .debug_ballast,\\"\\",%progbits\\n"\n'
            '        ".incbin \\"ballast.bin\\"\\n.popsection");\n'
        )


def _log(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
