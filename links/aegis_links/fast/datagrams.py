"""
Datagrams in bursts: several leave with one system call, and all that came are taken at once.

On Linux the kernel cuts a burst into datagrams (UDP_SEGMENT) and joins those that came in a row
(UDP_GRO); where a socket or a network card refuses, each travels alone. Over TURN they always do.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Final

import structlog
from aioice.ice import Connection, StunProtocol

MAX_BURST: Final = 16
MAX_BATCH: Final = 64
MAX_BATCH_BYTES: Final = 64 * 1024
"""What is handled in one go, while a keystroke on another channel or link waits."""
RECEIVE_BUFFER_BYTES: Final = 1024 * 1024
"""What is asked for; the kernel grants no more than net.core.rmem_max."""

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_COMPONENT: Final = 1
_RECORD_HEADER: Final = 13
_STUN_HEADER: Final = 20
_log = structlog.get_logger("aegis_links.fast")


class DatagramPort:
    """The way of one ICE connection. `widen` once it carries DTLS; `close` in the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cutters: dict[StunProtocol, socket.socket | None] = {}

    def widen(self) -> None:
        """Let every socket of the connection take bursts."""
        for protocol in self._connection._protocols:
            bare = protocol.transport.get_extra_info("socket")
            if type(protocol) is not StunProtocol or bare is None:
                continue
            with suppress(OSError):
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            if sys.platform == "linux":
                protocol.__class__ = JoinedStunProtocol
                with suppress(OSError):
                    bare.setsockopt(_SOL_UDP, _UDP_GRO, 1)

    def send(self, datagrams: bytes, size_bytes: int) -> None:
        """
        Send what is in `datagrams`, one after the other: each of `size_bytes`, the last perhaps
        shorter. Raises ConnectionError when there is no way to the peer.
        """
        pair = self._connection._nominated.get(_COMPONENT)
        if pair is None:
            raise ConnectionError("Cannot send data, not connected")
        protocol, address = pair.protocol, pair.remote_addr
        if len(datagrams) > size_bytes and self._sent_cut(protocol, datagrams, size_bytes, address):
            return
        for start in range(0, len(datagrams), size_bytes):
            protocol.transport.sendto(datagrams[start : start + size_bytes], address)

    async def receive(self) -> list[bytes]:
        """Wait for a datagram, and return it with others that are there by then."""
        batch = [(await self._connection.recvfrom())[0]]
        self.add_more(batch)
        return batch

    def add_more(self, batch: list[bytes]) -> None:
        """Put to `batch` what has come since, up to the size of one."""
        queue = self._connection._queue
        if queue.empty():
            return
        size_bytes = sum(map(len, batch))
        while len(batch) < MAX_BATCH and size_bytes < MAX_BATCH_BYTES and not queue.empty():
            item = queue.get_nowait()
            if item is None:  # the end, which the next call shall meet
                queue.put_nowait(None)
                break
            batch.append(item[0])
            size_bytes += len(item[0])

    def close(self) -> None:
        for cutter in self._cutters.values():
            if cutter is not None:
                cutter.close()
        self._cutters.clear()

    def _sent_cut(
        self, protocol: StunProtocol, datagrams: bytes, size_bytes: int, address: tuple[str, int]
    ) -> bool:
        if protocol not in self._cutters:
            self._cutters[protocol] = _cutter_of(protocol)
        cutter = self._cutters[protocol]
        if cutter is None:
            return False
        cut = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("H", size_bytes))]
        try:
            cutter.sendmsg([datagrams], cut, 0, address)
        except BlockingIOError:
            return False  # full: the transport's own queue takes them one by one
        except OSError as exc:
            # EIO: the card can't; EINVAL: a datagram is larger than the path's MTU.
            _log.info("segmentation.refused", errno=exc.errno)
            cutter.close()
            self._cutters[protocol] = None
            return False
        return True


class JoinedStunProtocol(StunProtocol):
    """aioice's, for a socket whose datagrams may come joined."""

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        assert isinstance(data, bytes)
        if is_record(data):
            self.receiver.data_received(data, self.local_candidate.component)
            return
        while len(data) >= _STUN_HEADER:
            end = _STUN_HEADER + int.from_bytes(data[2:4], "big")
            super().datagram_received(data[:end], addr)
            data = data[end:]
            if is_record(data):
                self.receiver.data_received(data, self.local_candidate.component)
                return


def is_record(data: bytes) -> bool:
    """Whether a datagram is DTLS (RFC 7983)."""
    return len(data) > 0 and 19 < data[0] < 64


def records_end(data: bytes, start: int, max_records: int) -> int:
    """Where the DTLS 1.2 records that begin at `start` end, after `max_records` at most."""
    length = len(data)
    for _ in range(max_records):
        if start + _RECORD_HEADER > length or not 19 < data[start] < 64:
            break
        start += _RECORD_HEADER + (data[start + 11] << 8) + data[start + 12]
    return min(start, length)


def _cutter_of(protocol: StunProtocol) -> socket.socket | None:
    bare = protocol.transport.get_extra_info("socket")
    if sys.platform != "linux" or bare is None:
        return None
    cutter = socket.socket(fileno=os.dup(bare.fileno()))
    cutter.setblocking(False)
    return cutter
