"""
A peer in a process of its own, to be killed: reads an offer and its fingerprint as JSON from
stdin, answers on stdout, says `open`, and then waits for its end.
"""

from __future__ import annotations

import asyncio
import json
import sys

import structlog
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.fingerprint import Fingerprint


def say(**words: str) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    offer = json.loads(sys.stdin.readline())
    certificate = Certificate.generate()
    async with PeerLink.answering(
        offer["sdp"],
        certificate,
        expected_fingerprint=Fingerprint.parse(offer["fingerprint"]),
        granted=frozenset(ChannelName),
    ) as link:
        say(sdp=link.answer_sdp, fingerprint=str(certificate.fingerprint))
        await link.opened(10)
        say(state="open")
        async for _ in link.channel(ChannelName.SOURCE):
            pass
        await link.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
