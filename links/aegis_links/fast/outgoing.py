"""A DATA chunk on its way to the peer."""

from __future__ import annotations


class Outgoing:
    """A DATA chunk from the queue to its acknowledgment."""

    __slots__ = (
        "flags",
        "flies",
        "here",
        "misses",
        "number",
        "protocol",
        "sendings",
        "sent_at",
        "sequence",
        "serial",
        "stream_id",
        "user_data",
    )

    def __init__(
        self, flags: int, stream_id: int, sequence: int, protocol: int, user_data: bytes
    ) -> None:
        self.flags = flags
        self.stream_id = stream_id
        self.sequence = sequence
        self.protocol = protocol
        self.user_data = user_data
        self.number = 0
        self.serial = 0
        self.sendings = 0
        self.sent_at = 0.0
        self.misses = 0
        self.flies = False  # counted in the flight size
        self.here = False  # the peer has it, by a gap block
