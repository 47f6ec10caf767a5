"""
Two fast associations in one process, joined by queues instead of DTLS: each packet can be seen,
lost, kept or made up by the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aegis_links.certificate import Certificate
from aegis_links.fast.dtls import FastDtls
from aegis_links.fast.sctp import FastSctp
from aiortc import RTCDataChannel, RTCDataChannelParameters, RTCIceGatherer, RTCIceTransport
from aiortc.rtcdtlstransport import State
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport
from waiting import until

PORT = 5000
_CERTIFICATE = Certificate.generate()


class Wire(FastDtls):
    """A FastDtls whose packets go to `passes`, which tells whether the far end gets them."""

    def __init__(self, role: str) -> None:
        super().__init__(RTCIceTransport(RTCIceGatherer([])), [_CERTIFICATE.rtc])
        self._set_role(role)
        self._state = State.CONNECTED
        self.passes: Callable[[bytes], bool] = lambda packet: True
        self.sent: list[bytes] = []
        self.arriving: asyncio.Queue[bytes] = asyncio.Queue()
        self.far: Wire | None = None

    def send_packets(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self.sent.append(packet)
            if self.far is not None and self.passes(packet):
                self.far.arriving.put_nowait(packet)

    async def pump(self, association: FastSctp) -> None:
        while True:
            batch = [await self.arriving.get()]
            while not self.arriving.empty():
                batch.append(self.arriving.get_nowait())
            await association.take_packets(batch)


@dataclass
class End:
    wire: Wire
    association: FastSctp
    received: list[bytes | str] = field(default_factory=list)

    def open_channel(self, *, ordered: bool = True) -> RTCDataChannel:
        parameters = RTCDataChannelParameters(label="test", ordered=ordered)
        return RTCDataChannel(self.association, parameters)

    def listen(self) -> None:
        def take(channel: RTCDataChannel) -> None:
            channel.on("message", self.received.append)

        self.association.on("datachannel", take)


@asynccontextmanager
async def wired(*, agreed: bool = False) -> AsyncIterator[tuple[End, End]]:
    """
    Two established associations; the second notes every message it receives.

    agreed  each knew the other's INIT beforehand
    """
    ends = []
    for role in ("client", "server"):
        wire = Wire(role)
        ends.append(End(wire, FastSctp(wire)))
    near, far = ends
    near.wire.far, far.wire.far = far.wire, near.wire
    far.listen()
    if agreed:
        for one, other in ((near, far), (far, near)):
            assert one.association.agree(other.association.early_init)
    pumps = [asyncio.create_task(end.wire.pump(end.association)) for end in ends]
    try:
        for end in ends:
            await end.association.start(RTCSctpCapabilities(maxMessageSize=65536), PORT)
        for end in ends:
            await until(lambda end=end: is_established(end))  # type: ignore[misc]
        yield near, far
    finally:
        for end in ends:
            await end.association.stop()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def is_established(end: End) -> bool:
    return end.association._association_state is RTCSctpTransport.State.ESTABLISHED


def is_data(packet: bytes) -> bool:
    return packet[12] == 0


def is_sack(packet: bytes) -> bool:
    return packet[12] == 3


def tsn_of(packet: bytes) -> int:
    return int.from_bytes(packet[16:20], "big")
