"""aiortc's DTLS transport, with bursts: packets by the list instead of one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from aiortc import RTCCertificate, RTCDtlsTransport, RTCIceTransport
from aiortc.rtcdtlstransport import State

from aegis_links.fast.datagrams import MAX_BURST, DatagramPort, is_record, records_end
from aegis_links.fast.record_layer import RecordLayer
from aegis_links.fast.turns import LIGHT_BYTES, of_this_loop


class PacketReceiver(Protocol):
    """Who takes decrypted packets by the list."""

    async def take_packets(self, packets: Sequence[bytes]) -> None: ...


class FastDtls(RTCDtlsTransport):
    """Up to the end of the handshake this is aiortc's; from then on records go in bursts."""

    def __init__(self, transport: RTCIceTransport, certificates: list[RTCCertificate]) -> None:
        super().__init__(transport, certificates)
        self._port = DatagramPort(transport._connection)
        self._records: RecordLayer | None = None
        self._widened = False
        self._seat = of_this_loop().seat()

    def send_packets(self, packets: Sequence[bytes]) -> None:
        """Send each in a record and a datagram of its own. Raises ConnectionError."""
        if self._state is not State.CONNECTED:
            raise ConnectionError("Cannot send encrypted data, not connected")
        records = self._record_layer()
        for burst in bursts(packets) if records.is_counted else [[packet] for packet in packets]:
            self._ship(records.seal(burst), len(burst))

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            self._port.close()

    async def _send_data(self, data: bytes) -> None:
        self.send_packets((data,))

    async def _recv_next(self) -> None:
        # The peer may repeat its last flight a while: aiortc's code sees to that first.
        settled = self.__dict__["_RTCDtlsTransport__handshake_done"]
        if not settled or self._state is not State.CONNECTED:
            await super()._recv_next()
            return
        records = self._record_layer()
        if records.is_counted and not self._widened:
            self._widened = True
            self._port.widen()
        packets: list[bytes] = []
        datagrams = await self._port.receive()
        if sum(map(len, datagrams)) > LIGHT_BYTES:
            await self._seat.mine()
            self._port.add_more(datagrams)
        for datagram in datagrams:
            if is_record(datagram):
                packets += records.open(datagram)
        if unasked := records.outgoing():
            self._port.send(unasked, len(unasked))
        if packets and self._data_receiver is not None:
            await cast(PacketReceiver, self._data_receiver).take_packets(packets)
        if records.closed:
            raise ConnectionError("The peer closed DTLS")

    def _record_layer(self) -> RecordLayer:
        if self._records is None:
            assert self._ssl is not None
            self._records = RecordLayer(self._ssl)
        return self._records

    def _ship(self, records: bytes, count: int) -> None:
        size_bytes = records_end(records, 0, 1) if count > 1 else len(records)
        if (count - 1) * size_bytes < len(records) <= count * size_bytes:
            self._port.send(records, size_bytes)
            return
        # libssl had a word of its own to say, or the cipher pads: each by its own length.
        start = 0
        while start < len(records):
            end = records_end(records, start, 1)
            self._port.send(records[start:end], end - start)
            start = end


def bursts(packets: Sequence[bytes]) -> list[list[bytes]]:
    """Group packets so that in each group all but the last are equally long, and that no longer."""
    groups: list[list[bytes]] = []
    room = 0
    size_bytes = -1
    for packet in packets:
        length = len(packet)
        if room and length == size_bytes:
            groups[-1].append(packet)
            room -= 1
        elif room and length < size_bytes:
            groups[-1].append(packet)
            room = 0
        else:
            groups.append([packet])
            size_bytes, room = length, MAX_BURST - 1
    return groups
