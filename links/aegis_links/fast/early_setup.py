"""
SCTP's set-up in the session descriptions: `a=sctp-init` (draft-hancke-tsvwg-snap).

Each side writes the INIT chunk that it would send. With both known before the first packet, the
association is there as soon as DTLS is: two round trips earlier. What INIT guards against, DTLS
does: nobody but the peer that both descriptions name gets a packet through.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final

from aiortc.rtcsctptransport import InitChunk

_HEADER: Final = struct.Struct("!BBH")
_FIXED_BYTES: Final = 20
_LEAST_WINDOW_BYTES: Final = 1_500
"""RFC 9260 section 3.3.2: no receiver announces less."""


def written(chunk: InitChunk) -> str:
    return base64.b64encode(bytes(chunk)).decode()


def read(text: str) -> InitChunk | None:
    """Return the chunk, or None where `text` is no INIT that an association could begin with."""
    try:
        content = base64.b64decode(text, validate=True)
        kind, flags, length = _HEADER.unpack_from(content)
        if kind != InitChunk.type or not _FIXED_BYTES <= length <= len(content):
            return None
        chunk = InitChunk(flags, content[_HEADER.size : length])
    except (binascii.Error, ValueError, struct.error, IndexError):
        return None
    streams = min(chunk.outbound_streams, chunk.inbound_streams)
    usable = chunk.initiate_tag and streams and chunk.advertised_rwnd >= _LEAST_WINDOW_BYTES
    return chunk if usable else None
