"""The five data channels between a client and an agent, and the sizes that hold on all of them."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ChannelName(StrEnum):
    """The label of a data channel. Any other label has no meaning and is rejected."""

    ESPCTL = "espctl"  # requests, as JSON-RPC 2.0 text
    SOURCE = "source"  # upload, as transfer frames
    PTY = "pty"  # a build's terminal, as stream frames
    FIRMWARE = "firmware"  # artifacts, as transfer frames
    SERIAL = "serial"  # a board's console, as stream frames


STREAM_IDS: Final[Mapping[ChannelName, int]] = MappingProxyType(
    {
        ChannelName.ESPCTL: 0,
        ChannelName.SOURCE: 2,
        ChannelName.PTY: 4,
        ChannelName.FIRMWARE: 6,
        ChannelName.SERIAL: 8,
    }
)
"""The SCTP stream of a channel that both descriptions agree on. Even: a client opens in band with
odd ones, since the agent is the DTLS client and itself opens none (RFC 8832 section 6)."""

SEND_QUEUE_CAP_BYTES: Final = 131_072
"""`bufferedAmount`, summed over the channels of one connection, never exceeds this."""

MAX_MESSAGE_BYTES: Final = 65_536
"""No message on any channel is larger; every session description announces it."""

PAYLOAD_BYTES: Final = 16_384
"""How much file or terminal a full frame carries."""

MAX_ERROR_BYTES: Final = 4_096
"""The largest error body in an abort frame, as UTF-8 JSON."""
