"""
Session descriptions (RFC 8866, RFC 8841): ours written, the peer's read.

Ours has one data channel section, one fingerprint and every candidate. aiortc's own offer has
three fingerprints of different hashes, which is why it is not used.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from aegis_protocol.channels import MAX_MESSAGE_BYTES, ChannelName
from aegis_protocol.failures.link import SdpInvalid
from aegis_protocol.fingerprint import Fingerprint, check_sdp
from aiortc import RTCIceCandidate, RTCIceGatherer
from aiortc.rtcdtlstransport import RTCDtlsFingerprint, RTCDtlsParameters
from aiortc.rtcicetransport import RTCIceParameters
from aiortc.rtcsctptransport import RTCSctpCapabilities
from aiortc.sdp import (
    GroupDescription,
    MediaDescription,
    SessionDescription,
    candidate_from_sdp,
)

MAX_REMOTE_CANDIDATES: Final = 32
MAX_REMOTE_CHANNELS: Final = 16

_SCTP_PORT: Final = 5000
_DISCARD_PORT: Final = 9
_AGREED: Final = re.compile(r'a=dcmap:(?P<id>\d{1,4}) label="(?P<label>[a-z]{1,40})"')
_INIT: Final = re.compile(r"a=sctp-init:(?P<chunk>[A-Za-z0-9+/=]{1,1024})")

DtlsRole: TypeAlias = Literal["auto", "client", "server"]
"""Who begins the DTLS handshake: `client` does; an offer leaves it to the answer (`auto`)."""


@dataclass(frozen=True)
class RemoteDescription:
    """
    What the peer said about itself.

    candidates  usable ones: UDP, an address instead of an mDNS name, at most 32
    complete    no further candidate will come and none was left out, so that a failure of all
                of them is final
    channels    which channel shall be which SCTP stream, by label (RFC 8864): an offer proposes,
                the answer repeats what it takes. Those with further properties are left out
    sctp_init   the INIT chunk in base64 as it stands there, which saves its round trips; empty
                where the peer wants SCTP's own set-up
    """

    fingerprint: Fingerprint
    dtls_role: DtlsRole
    ice: RTCIceParameters
    candidates: tuple[RTCIceCandidate, ...]
    complete: bool
    sctp_port: int
    max_message_bytes: int
    mid: str
    channels: Mapping[str, int]
    sctp_init: str


def read_description(sdp: str) -> RemoteDescription:
    """Read a peer's offer or answer. Raises SdpInvalid, FingerprintAmbiguous."""
    fingerprint = check_sdp(sdp)
    # One bad candidate line must not cost the connection: they are read one by one, below.
    kept: list[str] = []
    candidate_lines: list[str] = []
    for line in sdp.splitlines():
        (candidate_lines if line.startswith("a=candidate:") else kept).append(line)
    try:
        media = SessionDescription.parse("\r\n".join(kept) + "\r\n").media[0]
    except (ValueError, AssertionError, LookupError, AttributeError, TypeError) as exc:
        raise SdpInvalid("The session description can't be read.") from exc
    if media.dtls is None:
        raise SdpInvalid("The session description does not say who begins (`a=setup`).")
    if media.ice is None or not (media.ice.usernameFragment and media.ice.password):
        raise SdpInvalid("The session description has no ICE user name or no password.")
    port = _SCTP_PORT if media.sctp_port is None else media.sctp_port
    announced = 65_536 if media.sctpCapabilities is None else media.sctpCapabilities.maxMessageSize
    if not (1 <= port <= 65_535 and announced >= 0):
        raise SdpInvalid("The session description has a number that is out of range.")
    found = [read_candidate(line.removeprefix("a=candidate:")) for line in candidate_lines]
    usable = [candidate for candidate in found if candidate is not None]
    return RemoteDescription(
        fingerprint=fingerprint,
        dtls_role=_role(media.dtls.role),
        ice=media.ice,
        candidates=tuple(usable[:MAX_REMOTE_CANDIDATES]),
        complete=bool(media.ice_candidates_complete and usable and len(usable) == len(found)),
        sctp_port=port,
        max_message_bytes=announced,
        mid=media.rtp.muxId or "0",
        channels=_agreed(kept),
        sctp_init=_init(kept),
    )


def read_candidate(text: str) -> RTCIceCandidate | None:
    """
    Read a candidate without its `candidate:`; None where it is of no use here.

    Of no use are mDNS names (`.local`), which cost a second each and are found as peer-reflexive
    candidates anyway, TCP, and whatever can't be read.
    """
    try:
        candidate = candidate_from_sdp(text)
    except (ValueError, AssertionError, LookupError):
        return None
    local_name = candidate.ip.lower().rstrip(".").endswith(".local")
    if candidate.protocol.lower() != "udp" or local_name or not 1 <= candidate.port <= 65_535:
        return None
    return candidate if candidate.component == 1 else None


def write_description(
    kind: Literal["offer", "answer"],
    gatherer: RTCIceGatherer,
    fingerprint: Fingerprint,
    *,
    dtls_role: DtlsRole,
    mid: str,
    channels: Mapping[ChannelName, int],
    sctp_init: str,
) -> str:
    """
    Write an offer or an answer with every candidate that `gatherer` found.

    channels, sctp_init  as in RemoteDescription
    """
    media = MediaDescription("application", _DISCARD_PORT, "UDP/DTLS/SCTP", ["webrtc-datachannel"])
    media.host = "0.0.0.0"  # noqa: S104 - RFC 8839 section 4.3: no default candidate
    media.sctp_port = _SCTP_PORT
    media.sctpCapabilities = RTCSctpCapabilities(maxMessageSize=MAX_MESSAGE_BYTES)
    media.rtp.muxId = mid
    media.ice = gatherer.getLocalParameters()
    media.ice_candidates = gatherer.getLocalCandidates()
    media.ice_candidates_complete = True
    media.dtls = RTCDtlsParameters(
        fingerprints=[RTCDtlsFingerprint("sha-256", fingerprint.pairs)], role=dtls_role
    )
    session = SessionDescription()
    now = int(time.time())
    session.origin = f"- {now} {now} IN IP4 0.0.0.0"
    session.type = kind
    session.group = [GroupDescription("BUNDLE", [mid])]
    session.media = [media]
    own = [f'a=dcmap:{stream_id} label="{label}"' for label, stream_id in channels.items()]
    own += [f"a=sctp-init:{sctp_init}"] if sctp_init else []
    return str(session) + "".join(f"{line}\r\n" for line in own)


def _agreed(lines: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        match = _AGREED.fullmatch(line)
        if match and len(found) < MAX_REMOTE_CHANNELS and int(match["id"]) not in found.values():
            found.setdefault(match["label"], int(match["id"]))
    return found


def _init(lines: list[str]) -> str:
    matches = (_INIT.fullmatch(line) for line in lines)
    return next((match["chunk"] for match in matches if match), "")


def _role(role: str) -> DtlsRole:
    match role:
        case "auto" | "client" | "server":
            return role
        case _:
            raise SdpInvalid("`a=setup` is active, passive or actpass.")
