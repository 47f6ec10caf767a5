"""DTLS fingerprints as text and bytes, and the check of a session description before it is used."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import Final

from aegis_protocol.failures.link import FingerprintAmbiguous, FingerprintMismatch, SdpInvalid

MAX_SDP_BYTES: Final = 16_384
DIGEST_BYTES: Final = 32

_PAIRS: Final = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}")
_MEDIA: Final = re.compile(r"m=application \d{1,5} UDP/DTLS/SCTP webrtc-datachannel")


@dataclass(frozen=True)
class Fingerprint:
    """The SHA-256 of a DTLS certificate in DER. `str()` gives `sha-256:AB:CD:…`."""

    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise SdpInvalid(f"A fingerprint has {DIGEST_BYTES} bytes, not {len(self.digest)}.")

    def __str__(self) -> str:
        return f"sha-256:{self.pairs}"

    @property
    def pairs(self) -> str:
        """The digest as it stands in a session description: `AB:CD:…`, upper case."""
        return self.digest.hex(":").upper()

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """
        Read `sha-256:AB:CD:…`, in any case; `sha-256 AB:CD:…` as in SDP is read too.

        Raises SdpInvalid for another algorithm, another length or anything else.
        """
        algorithm, digest = text[:7].lower(), text[8:]
        if algorithm != "sha-256" or text[7:8] not in (":", " ") or not _PAIRS.fullmatch(digest):
            raise SdpInvalid("A fingerprint reads `sha-256:` and 32 pairs of hex digits.")
        return cls(bytes.fromhex(digest.replace(":", "")))

    def expect(self, other: Fingerprint) -> None:
        """Raise FingerprintMismatch unless `other` is the same."""
        if not hmac.compare_digest(self.digest, other.digest):
            raise FingerprintMismatch(
                "The peer's certificate is not the announced one.",
                expected=str(self),
                found=str(other),
            )


def check_sdp(sdp: str) -> Fingerprint:
    """
    Return the one fingerprint of a session description that is fit to be used.

    Fit is: at most 16 KiB, printable ASCII in lines that end with LF or CRLF (another parser
    may take other characters for line ends and so see another fingerprint), exactly one media
    section, which is a data channel over UDP, and one fingerprint value, sha-256. The same value
    may stand at session and at media level.

    Raises SdpInvalid, FingerprintAmbiguous.
    """
    if len(sdp) > MAX_SDP_BYTES:
        raise SdpInvalid(f"The session description is larger than {MAX_SDP_BYTES} bytes.")
    lines = [line.removesuffix("\r") for line in sdp.split("\n")]
    if any(not (line.isascii() and (line == "" or line.isprintable())) for line in lines):
        raise SdpInvalid("The session description has characters other than printable ASCII.")
    if lines[0] != "v=0":
        raise SdpInvalid("The session description does not begin with `v=0`.")
    media = [line for line in lines if line.startswith("m=")]
    if len(media) != 1:
        raise SdpInvalid(f"The session description has {len(media)} media sections, not one.")
    if not _MEDIA.fullmatch(media[0]):
        raise SdpInvalid("The media section is no data channel over UDP.")
    prefix = "a=fingerprint:"
    values = {line.removeprefix(prefix).upper() for line in lines if line.startswith(prefix)}
    if len(values) > 1:
        raise FingerprintAmbiguous(
            f"The session description has {len(values)} different fingerprints.", count=len(values)
        )
    if not values:
        raise SdpInvalid("The session description has no fingerprint.")
    return Fingerprint.parse(values.pop())
