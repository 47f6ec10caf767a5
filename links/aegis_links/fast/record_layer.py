"""
SCTP packets into DTLS records and back, many at a time, by libssl's own calls.

pyOpenSSL's `send` and `bio_read` cost three times what encrypting a packet does. Here a burst
of packets is written record by record, and the records are fetched once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from OpenSSL import SSL

from aegis_links.fast.datagrams import records_end

_BUFFER_BYTES: Final = 32 * 1024
_RECORDS_AT_ONCE: Final = 8
"""libssl reads at most some 16 KiB from below at once, and drops a record that is cut there."""

_lib: Final[Any] = SSL._lib  # type: ignore[attr-defined]
_ffi: Final[Any] = SSL._ffi  # type: ignore[attr-defined]


class _Buffer(threading.local):
    """libssl's calls let other threads run: each has a buffer of its own."""

    def __init__(self) -> None:
        self.bytes = _ffi.new("char[]", _BUFFER_BYTES)


_buffer: Final = _Buffer()


class RecordLayer:
    """
    Over a connection whose handshake is done.

    closed      the peer said that it is the end
    is_counted  each record tells its length, as in DTLS 1.2, so several may travel joined
    """

    def __init__(self, connection: SSL.Connection) -> None:
        self.closed = False
        self.is_counted = connection.get_protocol_version_name() == "DTLSv1.2"
        self._connection: Any = connection  # owns what the three below point to
        self._ssl = self._connection._ssl
        self._inward = self._connection._into_ssl
        self._outward = self._connection._from_ssl

    def seal(self, packets: Sequence[bytes]) -> bytes:
        """
        Return the records of at most 16 packets, one after the other.

        Raises ConnectionError where libssl takes no more.
        """
        ssl, write = self._ssl, _lib.SSL_write
        for packet in packets:
            if write(ssl, packet, len(packet)) <= 0:
                _lib.ERR_clear_error()
                raise ConnectionError("DTLS takes no more data")
        return self.outgoing()

    def outgoing(self) -> bytes:
        """Return what libssl wants to be sent; mostly nothing."""
        length = _lib.BIO_read(self._outward, _buffer.bytes, _BUFFER_BYTES)
        return _ffi.buffer(_buffer.bytes, length)[:] if length > 0 else b""

    def open(self, datagram: bytes) -> list[bytes]:
        """Return the packets in a datagram, or in several joined; what is forged is left out."""
        packets: list[bytes] = []
        if not self.is_counted:
            self._open_part(datagram, packets)
            return packets
        start = 0
        while not self.closed:
            end = records_end(datagram, start, _RECORDS_AT_ONCE)
            if end == start:
                break
            part = datagram if end - start == len(datagram) else datagram[start:end]
            self._open_part(part, packets)
            start = end
        return packets

    def _open_part(self, part: bytes, packets: list[bytes]) -> None:
        ssl, buffer, read, view = self._ssl, _buffer.bytes, _lib.SSL_read, _ffi.buffer
        _lib.BIO_write(self._inward, part, len(part))
        while (length := read(ssl, buffer, _BUFFER_BYTES)) > 0:
            packets.append(view(buffer, length)[:])
        error = _lib.SSL_get_error(ssl, length)
        if error == _lib.SSL_ERROR_ZERO_RETURN:
            self.closed = True
        elif error != _lib.SSL_ERROR_WANT_READ:
            _lib.ERR_clear_error()
