"""
Records what another implementation sends to a link, packet by packet, for test_fast_recorded.py.

    PYTHONPATH=benchmarks python tests/recordings/record.py libdatachannel    (make bench-setup)
    PYTHONPATH=benchmarks python tests/recordings/record.py aiortc

The peer answers and sends firmware and a keystroke over a path that loses, copies and turns. What
is kept are SCTP packets after decryption, with the numbers that our side had chosen: a replay
chooses the same.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from aegis_links.association import FastAssociation
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.fingerprint import check_sdp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, rtcsctptransport
from bench.udp_path import UdpPath, Weather

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
TAG: Final = 0x01234567
TSN: Final = 0xFFFFFFFC
"""So that our numbers begin anew after a few."""
SIZE_BYTES: Final = 262_144
PIECE_BYTES: Final = 16_384
WEATHER: Final = Weather(loss=0.03, copied=0.03, disordered=0.05, delay_s=0.002, seed=11)
DROP_FINGERPRINTS: Final = ("a=fingerprint:sha-384", "a=fingerprint:sha-512")


class Peer(Protocol):
    name: str

    async def answer(self, sdp: str) -> str: ...
    async def send(self) -> None: ...
    async def close(self) -> None: ...


class StockAiortc:
    name = "aiortc"

    def __init__(self) -> None:
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._channels: dict[str, Any] = {}
        self._peer.on(
            "datachannel", lambda channel: self._channels.update({channel.label: channel})
        )

    async def answer(self, sdp: str) -> str:
        await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await self._peer.setLocalDescription(await self._peer.createAnswer())
        lines = self._peer.localDescription.sdp.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(DROP_FINGERPRINTS))

    async def send(self) -> None:
        for _ in range(SIZE_BYTES // PIECE_BYTES):
            self._channels["firmware"].send(bytes(PIECE_BYTES))
        self._channels["pty"].send(b"k")

    async def close(self) -> None:
        await self._peer.close()


class LibDataChannel:
    name = "libdatachannel"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def started(cls) -> LibDataChannel:
        script = ROOT / "benchmarks" / "peers" / "datachannel_peer.js"
        return cls(
            await asyncio.create_subprocess_exec(
                "node", str(script), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        )

    async def answer(self, sdp: str) -> str:
        return str((await self._ask("answer", sdp=sdp))["sdp"])

    async def send(self) -> None:
        await asyncio.sleep(0.5)  # its events come late
        await self._ask("send", size_bytes=SIZE_BYTES)
        self._tell("keys", count=1, pause_s=0)  # which nobody answers

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _ask(self, verb: str, **more: Any) -> dict[str, Any]:
        self._tell(verb, **more)
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer

    def _tell(self, verb: str, **more: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": 1, "do": verb, **more}).encode() + b"\n")


async def main(name: str) -> None:
    peer: Peer = StockAiortc() if name == "aiortc" else await LibDataChannel.started()
    numbers = iter([TAG, TSN])
    chosen = vars(rtcsctptransport)["random32"]
    vars(rtcsctptransport)["random32"] = lambda: next(numbers)
    certificate = Certificate.generate()
    try:
        async with (
            UdpPath.through(WEATHER) as path,
            PeerLink.offering(certificate, channels=ChannelName) as link,
        ):
            vars(rtcsctptransport)["random32"] = chosen
            packets: list[str] = []
            association = link._transport.association
            assert isinstance(association, FastAssociation)
            take = association.take_packets

            async def noted(batch: Sequence[bytes]) -> None:
                packets.extend(packet.hex() for packet in batch)
                await take(batch)

            association.take_packets = noted  # type: ignore[method-assign]
            answer = await peer.answer(path.of_offer(link.offer_sdp))
            await link.accept_answer(path.of_answer(answer), expected_fingerprint=check_sdp(answer))
            await link.opened(10)
            await peer.send()
            digest, got = hashlib.sha256(), 0
            while got < SIZE_BYTES:
                message = await link.channel(ChannelName.FIRMWARE).receive()
                assert isinstance(message, bytes)
                digest.update(message)
                got += len(message)
            await link.channel(ChannelName.PTY).receive()
    finally:
        await peer.close()
    recording = {
        "peer": peer.name,
        "tag": TAG,
        "tsn": TSN,
        "channels": [str(name) for name in ChannelName],
        "firmware": {"size_bytes": got, "sha256": digest.hexdigest()},
        "packets": packets,
    }
    path_of = HERE / f"{peer.name}.json.gz"
    path_of.write_bytes(gzip.compress(json.dumps(recording).encode(), mtime=0))
    sys.stdout.write(f"{path_of}: {len(packets)} packets\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
