"""aiortc's SCTP transport with both fast halves."""

from __future__ import annotations

from aegis_links.fast.sending import Sending


class FastSctp(Sending):
    """
    Takes the place of RTCSctpTransport over a FastDtls; the peer may be anybody's.

    Channels are reliable: `maxRetransmits` and `maxPacketLifeTime` of a channel are not heeded,
    and the peer is told so when the association is set up (RFC 3758 section 3.3.1).
    """
