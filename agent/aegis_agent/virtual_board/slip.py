# SPDX-License-Identifier: GPL-2.0-or-later
"""SLIP (RFC 1055) as the loaders speak it: a packet between two 0xC0, with two escapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

END: Final = 0xC0
ESC: Final = 0xDB
MAX_PACKET_BYTES: Final = 65_536
_UNESCAPED: Final = {0xDC: END, 0xDD: ESC}


def encode(payload: bytes) -> bytes:
    escaped = payload.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + escaped + b"\xc0"


class Decoder:
    """
    Finds packets in a stream of bytes.

    What stands outside of packets, packets with a bad escape and packets larger than
    `MAX_PACKET_BYTES` are dropped, as a loader drops them.
    """

    def __init__(self) -> None:
        self._raw = bytearray()
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each packet that `data` completes."""
        for index, part in enumerate(data.split(b"\xc0")):
            if index:  # an END stood before this part
                if self._inside and self._raw:
                    packet = _unescape(bytes(self._raw))
                    self._raw.clear()
                    self._inside = False
                    if packet is not None:
                        yield packet
                else:
                    self._inside = True
            if self._inside:
                self._raw += part
                if len(self._raw) > 2 * MAX_PACKET_BYTES:
                    self._raw.clear()
                    self._inside = False


def _unescape(raw: bytes) -> bytes | None:
    head, *rest = raw.split(b"\xdb")
    packet = bytearray(head)
    for part in rest:
        if not part or part[0] not in _UNESCAPED:
            return None
        packet.append(_UNESCAPED[part[0]])
        packet += part[1:]
    return bytes(packet) if len(packet) <= MAX_PACKET_BYTES else None
